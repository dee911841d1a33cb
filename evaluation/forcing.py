"""Teacher forcing: an engine's logits before each token of a given continuation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .child import ChildEngine
from .engine import Engine


def committed_logits(
    engine: Engine, prompt: Sequence[int], tokens: Sequence[int]
) -> NDArray[np.float32]:
    """Return the logits before each of `tokens`, [len(tokens), vocab_size], one step at a time.

    The engine hands over each row before it is told the token: commit, then reveal.
    """
    return np.stack([engine.begin(prompt), *(engine.reveal(token) for token in tokens[:-1])])


def batched_logits(
    engine: ChildEngine, prompt: Sequence[int], tokens: Sequence[int]
) -> NDArray[np.float32]:
    """Return the same in one pass: only for the reference, which is trusted with the tokens."""
    first = engine.begin(prompt)[None]
    if len(tokens) == 1:
        return first
    return np.concatenate([first, engine.extend(tokens[:-1])])
