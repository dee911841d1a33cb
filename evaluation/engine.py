"""What evaluation knows of an engine: one `Protocol`, satisfied by every door."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Generation:
    """Tokens and how long they took, prefill included.

    The clock covers all the time that the engine may run: from before the prompt is sent until
    after the last token has been received.
    """

    tokens: tuple[int, ...]
    duration_s: float

    @property
    def tps(self) -> float:
        """Output tokens per second."""
        return len(self.tokens) / self.duration_s


class Engine(Protocol):
    """Turns prompt token ids into output token ids.

    Every method raises `EngineFailedError` when the engine crashes, and `InvalidOutputError` when
    it answers too late or something that the protocol doesn't allow.
    """

    @property
    def vocab_size(self) -> int:
        """Number of tokens that logits range over."""
        ...

    def generate(self, prompt: Sequence[int], num_tokens: int) -> Generation:
        """Decode exactly `num_tokens` greedy tokens after `prompt`."""
        ...

    def begin(self, prompt: Sequence[int]) -> NDArray[np.float32]:
        """Read `prompt` and return the next token's logits [vocab_size]."""
        ...

    def reveal(self, token: int) -> NDArray[np.float32]:
        """Tell the token that followed and return the logits after it."""
        ...

    def cpu_s(self) -> float:
        """Return the CPU seconds that the engine has used so far."""
        ...

    def close(self) -> None:
        """End the engine and everything it started."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
