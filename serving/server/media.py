"""Pictures and sounds of a request, decoded. Nothing is fetched: they come inside the request."""

import base64
import binascii
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import RequestError
from .fields import Message

SAMPLING_RATE = 16_000
MOST_SECONDS = 30.0
_MOST_PIXELS = 50_000_000
_MOST_BYTES = 20_000_000
_MOST_PARTS = 16  # pictures and sounds of one request


@dataclass
class Conversation:
    """A conversation as chat templates read it, beside what is to be seen and heard in it.

    Attributes:
        turns: role, and content in parts: {"type": "text", "text": …}, {"type": "image"},
            {"type": "audio"}.
        images: of PIL, in order.
        sounds: float32 [samples] at 16 kHz, in order.
    """

    turns: list[dict[str, Any]] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    sounds: list[np.ndarray] = field(default_factory=list)


def read_conversation(messages: list[Message]) -> Conversation:
    """Decode all pictures and sounds of a conversation.

    Raises:
        RequestError: what is no picture, no sound, or too large.
    """
    found = Conversation()
    for message in messages:
        parts = []
        for part in message.parts:
            kind = part["type"]
            if kind == "text":
                parts.append(part)
            elif kind == "image_url":
                found.images.append(_picture(_inside(_url(part), "image_url")))
                parts.append({"type": "image"})
            else:
                data = part.get("input_audio", {}).get("data")
                encoded = data if kind == "input_audio" else _inside(_url(part), "audio_url")
                found.sounds.append(_sound(encoded))
                parts.append({"type": "audio"})
        found.turns.append({"role": message.role, "content": parts})
    if len(found.images) + len(found.sounds) > _MOST_PARTS:
        raise _wrong(f"{len(found.images) + len(found.sounds)} images and sounds; {_MOST_PARTS}"
                     " are read")  # fmt: skip
    return found


def _url(part: dict[str, Any]) -> Any:
    given = part.get(part["type"])
    return given.get("url") if isinstance(given, dict) else given


def _inside(url: Any, name: str) -> str:
    """Return what a data: URL has in base64."""
    head, comma, data = str(url).partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise _wrong(f"{name} {str(url)[:40]!r}: this server fetches nothing; send "
                     "data:TYPE;base64,…")  # fmt: skip
    return data


def _decoded(data: Any, what: str) -> io.BytesIO:
    if not isinstance(data, str) or len(data) > _MOST_BYTES * 4 // 3 + 4:
        raise _wrong(f"{what}: base64 of at most {_MOST_BYTES // 1_000_000} MB")
    try:
        return io.BytesIO(base64.b64decode(data, validate=True))
    except binascii.Error as error:
        raise _wrong(f"{what}: no base64: {error}") from error


def _picture(data: str) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = Image.open(_decoded(data, "image_url"))
        if image.width * image.height > _MOST_PIXELS:
            raise _wrong(f"image_url: {image.width} × {image.height} pixels are more than "
                         f"{_MOST_PIXELS // 1_000_000} million")  # fmt: skip
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _wrong(f"image_url: no picture that can be read: {error}") from error


def _sound(data: Any) -> np.ndarray:
    import soundfile

    file = _decoded(data, "input_audio")
    try:
        with soundfile.SoundFile(file) as opened:
            rate, seconds = opened.samplerate, opened.frames / opened.samplerate
            if seconds > MOST_SECONDS:
                raise _wrong(f"input_audio: {seconds:.1f} s; at most {MOST_SECONDS:g} s are heard")
            samples = opened.read(dtype="float32", always_2d=True).mean(1)
    except soundfile.SoundFileError as error:
        raise _wrong(f"input_audio: no sound that can be read: {error}") from error
    if not len(samples):
        raise _wrong("input_audio: no samples in it")
    if rate != SAMPLING_RATE:
        from scipy.signal import resample_poly

        samples = resample_poly(samples, SAMPLING_RATE, rate).astype(np.float32)
    return np.asarray(samples, dtype=np.float32)


def _wrong(told: str) -> RequestError:
    return RequestError(f"messages: {told}", param="messages")
