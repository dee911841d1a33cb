"""Prompt lookup: guess the next tokens from an earlier occurrence of the last few.

Source: Saxena 2023, "Prompt Lookup Decoding". Guesses cost nothing to make; the model verifies
all of them in one pass, and only those that it would have chosen itself are kept.
"""

_MOST = 7  # with the token before them, eight rows: as many as the packed kernels are good for


class PromptLookup:
    """Remembers where each n-gram of the text was last followed by something.

    `num_draft` is how many tokens it guesses at most. When adaptive, the number doubles while
    guesses come true and falls back to one more than what was accepted when they don't.
    """

    def __init__(self, setting: str, *, ngram: int = 3) -> None:
        self.adaptive = setting == "lookup-adaptive"
        self.num_draft = 3 if self.adaptive else int(setting.removeprefix("lookup-"))
        self.ngram = ngram
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def append(self, token: int) -> None:
        """Add one token to the text."""
        for size in range(2, self.ngram + 1):
            if len(self.tokens) >= size:
                self._after[tuple(self.tokens[-size:])] = len(self.tokens)
        self.tokens.append(token)

    def guess(self) -> list[int]:
        """Return up to `num_draft` tokens, from the longest n-gram seen before; may be empty."""
        for size in range(self.ngram, 1, -1):
            start = self._after.get(tuple(self.tokens[-size:]))
            if start is not None:
                return self.tokens[start : start + self.num_draft]
        return []

    def learn(self, num_guessed: int, num_accepted: int) -> None:
        """Adapt the number of guesses to what the last verification accepted."""
        if self.adaptive and num_guessed:
            doubled = num_accepted == num_guessed
            self.num_draft = min(_MOST, 2 * self.num_draft if doubled else num_accepted + 1)
