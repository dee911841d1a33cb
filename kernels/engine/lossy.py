"""Levers that compute less than the model: fewer layers, shorter windows, fewer words.

They lose quality, which is for the gates to judge. None of them looks at any text: words are kept
by their ids, which a tokenizer gives in the order of its merges, so by how frequent they were when
it was made; layers go from the back, the last one aside, since later layers change least (Gromov
et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers").
"""

from dataclasses import replace

import torch
from torch import Tensor

from .config import ModelConfig
from .levers import Levers

_SHARES = {"all": 1.0, "half": 0.5, "quarter": 0.25}
_BELOW = 10.0  # logits of words that aren't scored, below the least of those that are


def narrowed(config: ModelConfig, levers: Levers) -> ModelConfig:
    """Return the configuration with no window wider than the lever's."""
    if levers.window == "model":
        return config
    most = int(levers.window)
    return replace(config, windows=tuple(min(w or most, most) for w in config.windows))


def kept_layers(config: ModelConfig, levers: Levers) -> tuple[int, ...]:
    """Return the layers that are computed.

    Raises:
        ValueError: more to skip than can be: neither the first nor the last one, nor one whose
            keys and values others read.
    """
    if levers.skip == "none":
        return tuple(range(config.num_layers))
    count = int(levers.skip)
    able = [i for i in range(1, config.num_layers - 1) if i not in config.kv_sources]
    if count > len(able):
        raise ValueError(f"skip={count}: only {len(able)} layers can be left out")
    gone = set(able[-count:])
    return tuple(i for i in range(config.num_layers) if i not in gone)


def kept_words(config: ModelConfig, levers: Levers) -> int:
    """Return how many words are scored: those with the lowest ids."""
    return int(config.vocab_size * _SHARES[levers.vocab])


def widened(logits: Tensor, vocab_size: int) -> Tensor:
    """Return logits [rows, vocab_size]: of words that weren't scored, what is no match for others.

    Args:
        logits: [rows, words], of the lowest ids.
    """
    rows, words = logits.shape
    if words == vocab_size:
        return logits
    least = logits.amin(-1, keepdim=True) - _BELOW
    return torch.cat((logits, least.expand(rows, vocab_size - words)), -1)
