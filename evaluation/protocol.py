"""Frames between the trusted parent and an engine's child process.

A frame is a 4-byte big-endian length and a msgpack map; msgpack because decoding it can't run
code. The parent asks, the child answers, one frame each:

    load      {tree, model, max_context}     → {vocab_size}
    generate  {prompt, num_tokens}           → {tokens}
    begin     {prompt}                       → {logits}   float32 bytes, the next token's
    reveal    {token}                        → {logits}
    extend    {tokens}                       → {logits}   of each; asked of the reference only
    test      {kernels}                      → {rows}     of reference tests
    any                                      → {error}    one line
"""

import math
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from .errors import EngineFailedError, InvalidOutputError

_MOST_COMPONENTS, _LONGEST_NAME = 64, 40  # of a profile
MAX_FRAME_BYTES = 8 << 20  # a vocabulary of 262,144 float32 logits is 1 MiB
_MOST_CASES, _LONGEST_CASE = 200, 300
KERNELS = (
    "matrix", "norm", "rotation", "attention", "feed-forward", "native-matrix", "gpu-matrix",
)  # fmt: skip
_HEADER = struct.Struct(">I")


@dataclass(frozen=True)
class KernelCase:
    """One case of a kernel's reference test.

    Attributes:
        case: what was tried, or how it failed.
        error: relative to what is right; negative if there is none.
        bound: the largest error that is due to rounding.
    """

    kernel: str
    case: str
    error: float
    bound: float
    ok: bool


def send_frame(sock: socket.socket, message: dict[str, Any], timeout_s: float) -> None:
    """Send one frame.

    Raises:
        EngineFailedError: the other side didn't take it within `timeout_s`.
    """
    payload: bytes = msgpack.packb(message)
    sock.settimeout(timeout_s)
    try:
        sock.sendall(_HEADER.pack(len(payload)) + payload)
    except TimeoutError as error:
        raise EngineFailedError(f"took no request within {timeout_s:g} s") from error
    finally:
        sock.settimeout(None)


def receive_frame(
    sock: socket.socket,
    timeout_s: float,
    look: Callable[[], None] = lambda: None,
    look_every_s: float = math.inf,
) -> dict[str, Any]:
    """Receive one frame.

    Args:
        look: called every `look_every_s` seconds of waiting; may raise.

    Raises:
        EngineFailedError: the other side closed.
        InvalidOutputError: later than `timeout_s`, too long, not msgpack, or not a map.
    """
    wait = _Wait(sock, timeout_s, look, look_every_s)
    (length,) = _HEADER.unpack(wait.for_bytes(_HEADER.size))
    if length > MAX_FRAME_BYTES:
        raise InvalidOutputError(f"frame of {length} bytes, limit {MAX_FRAME_BYTES}")
    payload = wait.for_bytes(length)
    try:
        message = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise InvalidOutputError(f"frame of {length} bytes is not msgpack") from error
    if not isinstance(message, dict):
        raise InvalidOutputError(f"frame is a {type(message).__name__}, not a map")
    return message


def has_data(sock: socket.socket) -> bool:
    """Whether something waits to be received: an answer to a question that nobody asked yet."""
    ready, _, _ = select.select([sock], [], [], 0)
    if not ready:
        return False
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))  # nothing: it has ended, which is no answer
    except ConnectionError:
        return False


def one_line(text: str) -> str:
    """Return untrusted text fit for a terminal and a report: printable, one line, short."""
    lines = text.strip().splitlines() or [""]
    return "".join(character for character in lines[0] if character.isprintable())[:300]


class _Wait:
    """Waiting for bytes until one deadline, with a look at the engine now and then."""

    def __init__(
        self, sock: socket.socket, timeout_s: float, look: Callable[[], None], look_every_s: float
    ) -> None:
        self._sock, self._timeout_s = sock, timeout_s
        self._look, self._look_every_s = look, look_every_s
        self._deadline = time.monotonic() + timeout_s

    def for_bytes(self, count: int) -> bytearray:
        received = bytearray()
        while len(received) < count:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise InvalidOutputError(f"no answer within {self._timeout_s:g} s")
            ready, _, _ = select.select([self._sock], [], [], min(left_s, self._look_every_s))
            if not ready:
                self._look()
                continue
            try:
                chunk = self._sock.recv(min(1 << 20, count - len(received)))
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


def check_logits(message: dict[str, Any], vocab_size: int, rows: int) -> NDArray[np.float32]:
    """Return the logits [rows, vocab_size] of an answer to `begin`, `reveal` or `extend`.

    Raises:
        InvalidOutputError: wrong size, NaN or infinity.
    """
    raw = _only_field(message, "logits")
    if not isinstance(raw, bytes) or len(raw) != 4 * rows * vocab_size:
        raise InvalidOutputError(f"logits are not {rows} × {vocab_size} float32 values")
    logits = np.frombuffer(raw, np.float32).reshape(rows, vocab_size)
    if not np.isfinite(logits).all():
        raise InvalidOutputError("logits hold NaN or infinity")
    return logits


def check_profile(message: dict[str, Any]) -> dict[str, float]:
    """Return the seconds by component of an answer to `profile`.

    Raises:
        InvalidOutputError: anything but a few names with finite times.
    """
    times = _only_field(message, "profile")
    if not isinstance(times, dict) or not 0 < len(times) <= _MOST_COMPONENTS:
        raise InvalidOutputError(f"a profile is 1 to {_MOST_COMPONENTS} components")
    for name, time_s in times.items():
        short = isinstance(name, str) and len(name) <= _LONGEST_NAME and name.isprintable()
        if not short or type(time_s) is not float or not 0 <= time_s < math.inf:
            raise InvalidOutputError(f"no component's time: {str(name)[:40]!r}")
    return times


def check_acceptance(message: dict[str, Any]) -> tuple[float, ...]:
    """Return the shares of an answer to `acceptance`, by position.

    Raises:
        InvalidOutputError: anything but a few shares.
    """
    shares = _only_field(message, "acceptance")
    if not isinstance(shares, list) or len(shares) > _MOST_COMPONENTS:
        raise InvalidOutputError(f"acceptance is at most {_MOST_COMPONENTS} shares")
    for share in shares:
        if type(share) is not float or not 0 <= share <= 1:
            raise InvalidOutputError(f"acceptance: {str(share)[:40]!r} is no share")
    return tuple(shares)


def check_kernel_cases(message: dict[str, Any], asked: Sequence[str]) -> tuple[KernelCase, ...]:
    """Return the cases of an answer to `test`.

    Args:
        asked: the kernels' names.

    Raises:
        InvalidOutputError: anything but some cases of each, and of no other, with finite errors.
    """
    rows = _only_field(message, "rows")
    if not isinstance(rows, list) or len(rows) > _MOST_CASES:
        raise InvalidOutputError(f"kernel tests have at most {_MOST_CASES} cases")
    kinds = {"kernel": str, "case": str, "error": float, "bound": float, "ok": bool}
    for row in rows:
        if not isinstance(row, dict) or {k: type(v) for k, v in row.items()} != kinds:
            raise InvalidOutputError(f"no case of a kernel's test: {str(row)[:80]!r}")
        if not math.isfinite(row["error"]) or not math.isfinite(row["bound"]):
            raise InvalidOutputError(f"a kernel's error is no number: {str(row)[:80]!r}")
    if {row["kernel"] for row in rows} != set(asked):
        raise InvalidOutputError(f"cases of other kernels than {', '.join(asked)}")
    return tuple(
        KernelCase(
            row["kernel"],
            one_line(row["case"])[:_LONGEST_CASE],
            row["error"],
            row["bound"],
            row["ok"],
        )
        for row in rows
    )


def check_vocab_size(message: dict[str, Any]) -> int:
    """Return the vocabulary size of an answer to `load`."""
    size = _only_field(message, "vocab_size")
    if type(size) is not int or not 0 < size <= MAX_FRAME_BYTES // 4:
        raise InvalidOutputError(f"vocab_size {str(size)[:40]!r} is not a sensible number")
    return size


def _only_field(message: dict[str, Any], name: str) -> Any:
    if "error" in message:
        raise EngineFailedError(one_line(str(message["error"])[:2000]))
    if set(message) != {name}:
        raise InvalidOutputError(f"answer has fields {sorted(map(str, message))[:5]}, not {name}")
    return message[name]
