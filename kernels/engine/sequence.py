"""What may be appended to a sequence."""


def check_tokens(tokens: list[int], vocab_size: int, length: int, max_context: int) -> None:
    """Check tokens that are to follow `length` others.

    Raises:
        ValueError: no tokens, an id outside the vocabulary, or more than `max_context` in all.
    """
    if not tokens:
        raise ValueError("no tokens: the engine needs at least one")
    if length + len(tokens) > max_context:
        raise ValueError(f"{length + len(tokens)} positions exceed the context of {max_context}")
    wrong = [t for t in tokens if not 0 <= t < vocab_size]
    if wrong:
        raise ValueError(f"token {wrong[0]} is outside 0..{vocab_size - 1}")
