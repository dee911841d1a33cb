"""Key/value caches of one layer: one that grows by copying, one that is laid out beforehand.

Both hold keys and values as [num_kv_heads, length, head_dim] and forget from the end
(`truncate`), which is what a rejected draft needs.
"""

from typing import Protocol

import torch
from torch import Tensor

from .config import ModelConfig


class LayerCache(Protocol):
    """Keys and values of the positions seen so far, for one layer."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add key and value [kv_heads, new, head_dim]; return all of them so far."""
        ...

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        ...


class GrowingCache:
    """Concatenates at each step: simple, and copies the whole cache for every token."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        empty = torch.empty(config.num_kv_heads, 0, config.head_dim, dtype=dtype)
        self.key, self.value = empty, empty

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add key and value; return all of them so far."""
        self.key = torch.cat((self.key, key), 1)
        self.value = torch.cat((self.value, value), 1)
        return self.key, self.value

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.key, self.value = self.key[:, :length], self.value[:, :length]


class StaticCache:
    """Allocated once for `max_context` positions; a step writes one row and returns a view."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, max_context: int) -> None:
        shape = (config.num_kv_heads, max_context, config.head_dim)
        self.key, self.value = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.length = 0

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add key and value; return all of them so far."""
        end = self.length + key.shape[1]
        self.key[:, self.length : end] = key
        self.value[:, self.length : end] = value
        self.length = end
        return self.key[:, :end], self.value[:, :end]

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.length = min(self.length, length)


def make_caches(
    config: ModelConfig, kind: str, dtype: torch.dtype, max_context: int
) -> list[LayerCache]:
    """Return an empty cache for each layer, of the kind that the `cache` lever names."""
    if kind == "growing":
        return [GrowingCache(config, dtype) for _ in range(config.num_layers)]
    return [StaticCache(config, dtype, max_context) for _ in range(config.num_layers)]
