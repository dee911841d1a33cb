"""What may be appended to a sequence."""

import torch
from torch import Tensor

# Embeddings that stand in a prompt instead of tokens': an image's, or a sound's. Where in the
# prompt, integers [n]; and what the first layer gets there, [n, hidden].
SoftTokens = tuple[Tensor, Tensor]


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


def put_soft(x: Tensor, soft: SoftTokens) -> Tensor:
    """Return embeddings [tokens, hidden] with those of `soft` in their places.

    Raises:
        ValueError: a position outside x, or embeddings of another width or number.
    """
    positions, rows = soft
    if rows.shape != (len(positions), x.shape[1]):
        raise ValueError(
            f"{len(positions)} soft tokens need embeddings [{len(positions)}, {x.shape[1]}], not "
            f"{list(rows.shape)}"
        )
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(x):
        raise ValueError(f"a soft token lies outside the prompt of {len(x)}")
    return torch.index_copy(x, 0, positions.to(x.device), rows.to(x.device, x.dtype))
