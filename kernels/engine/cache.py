"""Key/value caches of one layer: one that grows by copying, one that is laid out beforehand, one
that reads what an earlier layer holds.

All show keys and values as [num_kv_heads, length, head_dim] and forget from the end (`truncate`),
which is what a rejected draft needs. A layer with a sliding window holds every position, too:
`attend` looks at the last ones only.
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

    def contents(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of all positions so far."""
        ...


class GrowingCache:
    """Concatenates at each step: simple, and copies the whole cache for every token."""

    def __init__(
        self, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        empty = torch.empty(kv_heads, 0, head_dim, dtype=dtype, device=device)
        self.key, self.value = empty, empty

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add key and value; return all of them so far."""
        self.key = torch.cat((self.key, key), 1)
        self.value = torch.cat((self.value, value), 1)
        return self.key, self.value

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.key, self.value = self.key[:, :length], self.value[:, :length]

    def contents(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of all positions so far."""
        return self.key, self.value


class StaticCache:
    """Allocated once for `max_context` positions; a step writes one row and returns a view."""

    def __init__(
        self,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        max_context: int,
    ) -> None:
        shape = (kv_heads, max_context, head_dim)
        self.key = torch.zeros(shape, dtype=dtype, device=device)
        self.value = torch.zeros(shape, dtype=dtype, device=device)
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

    def contents(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of all positions so far."""
        return self.key[:, : self.length], self.value[:, : self.length]


class SharedCache:
    """Reads the cache of an earlier layer, which holds this step's positions by now."""

    def __init__(self, source: LayerCache) -> None:
        self._source = source

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return all keys and values of the source; this layer has none to add."""
        return self._source.contents()

    def truncate(self, length: int) -> None:
        """Do nothing: the source forgets."""

    def contents(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of all positions so far."""
        return self._source.contents()


def make_caches(
    config: ModelConfig, kind: str, dtype: torch.dtype, device: torch.device, max_context: int
) -> list[LayerCache]:
    """Return an empty cache for each layer, of the kind that the `cache` lever names."""
    caches: list[LayerCache] = []
    layers = zip(config.kv_sources, config.kv_heads, config.head_dims, strict=True)
    for source, kv_heads, head_dim in layers:
        if source is not None:
            caches.append(SharedCache(caches[source]))
        elif kind == "growing":
            caches.append(GrowingCache(kv_heads, head_dim, dtype, device))
        else:
            caches.append(StaticCache(kv_heads, head_dim, dtype, device, max_context))
    return caches
