"""Tokens become text while they come: no half characters, nothing of a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_BROKEN = "\ufffd"  # what a tokenizer makes of half a character


@dataclass
class TextStream:
    """The text of one answer as it grows.

    Args:
        tokenizer: of transformers.
        stops: strings that end the answer and are no part of it.

    Attributes:
        stopped: whether a stop string has come.
    """

    tokenizer: Any
    stops: Sequence[str] = ()
    stopped: bool = False
    _tokens: list[int] = field(default_factory=list)
    _start: int = 0  # of the tokens that are decoded together with new ones
    _told: int = 0  # tokens whose text is known
    _held: str = ""  # text that may be the beginning of a stop string

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens; return the text that is certain by now."""
        self._tokens += tokens
        # Some tokenizers write a word otherwise at the beginning: decode with what came before.
        before = self._decode(self._tokens[self._start : self._told])
        now = self._decode(self._tokens[self._start :])
        if now.endswith(_BROKEN) and len(self._tokens) - self._told < 16:
            return ""
        self._start, self._told = self._told, len(self._tokens)
        return self._certain(now[len(before) :])

    def finish(self) -> str:
        """Return what was held back, now that nothing more comes."""
        before = self._decode(self._tokens[self._start : self._told])
        rest = self._decode(self._tokens[self._start :])[len(before) :]
        self._told = len(self._tokens)
        text = self._certain(rest)
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _certain(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    return next(
        (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0
    )
