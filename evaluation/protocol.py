"""Frames between the trusted parent and an engine's child process.

A frame is a 4-byte big-endian length and a msgpack map; msgpack because decoding it can't run
code. The parent asks, the child answers, one frame each:

    load      {tree, model, max_context}     → {vocab_size}
    generate  {prompt, num_tokens}           → {tokens}
    begin     {prompt}                       → {logits}   float32 bytes, the next token's
    reveal    {token}                        → {logits}
    any                                      → {error}    one line
"""

import math
import select
import socket
import struct
import time
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from .errors import EngineFailedError, InvalidOutputError

MAX_FRAME_BYTES = 8 << 20  # a vocabulary of 262,144 float32 logits is 1 MiB
_HEADER = struct.Struct(">I")


def send_frame(sock: socket.socket, message: dict[str, Any]) -> None:
    """Send one frame."""
    payload: bytes = msgpack.packb(message)
    sock.sendall(_HEADER.pack(len(payload)) + payload)


def receive_frame(sock: socket.socket, timeout_s: float) -> dict[str, Any]:
    """Receive one frame.

    Raises:
        EngineFailedError: the other side closed, or was silent for longer than `timeout_s`.
        InvalidOutputError: too long, not msgpack, or not a map.
    """
    deadline = time.monotonic() + timeout_s
    (length,) = _HEADER.unpack(_receive_exactly(sock, _HEADER.size, deadline, timeout_s))
    if length > MAX_FRAME_BYTES:
        raise InvalidOutputError(f"frame of {length} bytes, limit {MAX_FRAME_BYTES}")
    payload = _receive_exactly(sock, length, deadline, timeout_s)
    try:
        message = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise InvalidOutputError(f"frame of {length} bytes is not msgpack") from error
    if not isinstance(message, dict):
        raise InvalidOutputError(f"frame is a {type(message).__name__}, not a map")
    return message


def _receive_exactly(
    sock: socket.socket, count: int, deadline: float, timeout_s: float
) -> bytearray:
    received = bytearray()
    while len(received) < count:
        ready, _, _ = select.select([sock], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise EngineFailedError(f"no answer within {timeout_s:g} s")
        try:
            chunk = sock.recv(min(1 << 20, count - len(received)))
        except ConnectionError:
            chunk = b""
        if not chunk:
            raise EngineFailedError("the engine's process ended")
        received += chunk
    return received


def check_tokens(message: dict[str, Any], num_tokens: int, vocab_size: int) -> list[int]:
    """Return the tokens of an answer to `generate`.

    Raises:
        InvalidOutputError: anything but exactly `num_tokens` ids of the vocabulary.
    """
    tokens = _only_field(message, "tokens")
    if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
        raise InvalidOutputError("tokens are not a list of integers")
    if len(tokens) != num_tokens:
        raise InvalidOutputError(f"{len(tokens)} tokens instead of {num_tokens}")
    wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise InvalidOutputError(f"token {wrong} is outside 0..{vocab_size - 1}")
    return tokens


def check_logits(message: dict[str, Any], vocab_size: int) -> NDArray[np.float32]:
    """Return the logits [vocab_size] of an answer to `begin` or `reveal`.

    Raises:
        InvalidOutputError: wrong size, NaN or infinity.
    """
    raw = _only_field(message, "logits")
    if not isinstance(raw, bytes) or len(raw) != 4 * vocab_size:
        raise InvalidOutputError(f"logits are not {vocab_size} float32 values")
    logits = np.frombuffer(raw, np.float32)
    if not math.isfinite(float(logits.sum(dtype=np.float64))):
        raise InvalidOutputError("logits hold NaN or infinity")
    return logits


def check_vocab_size(message: dict[str, Any]) -> int:
    """Return the vocabulary size of an answer to `load`."""
    size = _only_field(message, "vocab_size")
    if type(size) is not int or not 0 < size <= MAX_FRAME_BYTES // 4:
        raise InvalidOutputError(f"vocab_size {size!r} is not a sensible number")
    return size


def _only_field(message: dict[str, Any], name: str) -> Any:
    if "error" in message:
        reason = str(message["error"])[:500]
        raise EngineFailedError(reason)
    if set(message) != {name}:
        raise InvalidOutputError(f"answer has fields {sorted(map(str, message))[:5]}, not {name}")
    return message[name]
