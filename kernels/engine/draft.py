"""Guessing the next tokens, for the model to verify in one pass (Leviathan et al. 2023).

Whoever guesses, only guesses that the model would have chosen itself are kept. `PromptLookup` looks
in the text so far, `DraftModel` asks a smaller model, `assistant.py` one that reads this model's
own keys and values.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

MOST = 7  # with the token before them, eight rows: as many as the packed kernels are good for
_FIRST = 3  # guesses at a time, until acceptance says more


class Drafter(Protocol):
    """Guesses what follows."""

    def begin(self, prompt: list[int]) -> None:
        """Forget what was, and read a prompt."""
        ...

    def guess(self, last: int, row: Tensor, most: int) -> list[int]:
        """Return up to `most` guesses.

        Args:
            last: the newest token, which isn't in any cache yet.
            row: the model's normed output [hidden] that `last` was chosen from.
        """
        ...

    def accept(self, tokens: Sequence[int]) -> None:
        """Learn which tokens the text goes on with after the last `begin` or `accept`."""
        ...


class Pace:
    """How many guesses at a time.

    When adaptive, the number doubles while all guesses come true and falls back to one more than
    what was accepted when they don't.
    """

    def __init__(self, depth: str) -> None:
        self.adaptive = depth == "adaptive"
        self.num_draft = _FIRST if self.adaptive else int(depth)

    def learn(self, num_guessed: int, num_accepted: int) -> None:
        """Adapt to a verification."""
        if self.adaptive and num_guessed:
            doubled = num_accepted == num_guessed
            self.num_draft = min(MOST, 2 * self.num_draft if doubled else num_accepted + 1)


class Acceptance:
    """How many guesses came true, position by position.

    Attributes:
        offered, accepted: rounds in which there was a guess in a position; in which it was kept.
    """

    def __init__(self) -> None:
        self.offered, self.accepted = [0] * MOST, [0] * MOST

    def note(self, num_guessed: int, num_accepted: int) -> None:
        """Take note of a verification."""
        for position in range(num_guessed):
            self.offered[position] += 1
            self.accepted[position] += position < num_accepted

    def shares(self) -> list[float]:
        """Return the share of guesses that were kept, for each position that had any."""
        both = zip(self.accepted, self.offered, strict=True)
        return [accepted / offered for accepted, offered in both if offered]


class PromptLookup:
    """Guesses from an earlier occurrence of the last few tokens; costs nothing.

    Source: Saxena 2023, "Prompt Lookup Decoding".
    """

    def __init__(self, *, ngram: int = 3) -> None:
        self.ngram = ngram
        self.begin([])

    def begin(self, prompt: list[int]) -> None:
        """Forget what was, and read a prompt."""
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram → what last followed it
        self.accept(prompt)

    def accept(self, tokens: Sequence[int]) -> None:
        """Add tokens to the text."""
        for token in tokens:
            for size in range(2, self.ngram + 1):
                if len(self.tokens) >= size:
                    self._after[tuple(self.tokens[-size:])] = len(self.tokens)
            self.tokens.append(token)

    def guess(self, last: int, row: Tensor, most: int) -> list[int]:  # noqa: ARG002
        """Return up to `most` tokens, from the longest n-gram seen before; may be empty."""
        for size in range(self.ngram, 1, -1):
            start = self._after.get(tuple(self.tokens[-size:]))
            if start is not None:
                return self.tokens[start : start + most]
        return []


class Greedy(Protocol):
    """What a draft model has to be able to do; `model.Model` is one."""

    length: int
    max_context: int

    def reset(self) -> None: ...  # noqa: D102
    def truncate(self, length: int) -> None: ...  # noqa: D102
    def choose(self, tokens: list[int]) -> list[int]: ...  # noqa: D102
    def decode(self, token: int, count: int) -> list[int]: ...  # noqa: D102


class DraftModel:
    """A smaller model of the same vocabulary guesses, greedily."""

    def __init__(self, model: Greedy) -> None:
        self.model = model
        self.begin([])

    def begin(self, prompt: list[int]) -> None:
        """Forget what was; the prompt is read with the first guess."""
        self.model.reset()
        self.tokens, self._guessed = list(prompt), list[int]()

    def accept(self, tokens: Sequence[int]) -> None:
        """Forget guesses that didn't come true."""
        known = len(self.tokens)
        self.tokens += tokens
        guessed = self._guessed[: max(self.model.length - known, 0)]
        kept = 0
        while kept < min(len(guessed), len(tokens)) and guessed[kept] == tokens[kept]:
            kept += 1
        self.model.truncate(min(self.model.length, known + kept))
        self._guessed = []

    def guess(self, last: int, row: Tensor, most: int) -> list[int]:  # noqa: ARG002
        """Return `most` greedy tokens; fewer where its context ends."""
        most = min(most, self.model.max_context - len(self.tokens))
        guesses: list[int] = []
        if most > 0:
            guesses = self.model.choose(self.tokens[self.model.length :])
        if most > 1:
            guesses += self.model.decode(guesses[0], most - 1)
        self._guessed = guesses
        return guesses
