"""Key/value caches of one layer: one that grows by copying, one that is laid out beforehand, one
of pages, one that holds int8 codes in any of these, one that reads what an earlier layer holds.

All show keys and values as [num_kv_heads, length, head_dim] and forget from the end (`truncate`),
which is what a rejected draft needs. A layer with a sliding window holds every position, too:
`attend` looks at the last ones only.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .config import ModelConfig
from .levers import Levers

PAGE = 64  # positions, as in attention.cuh


@dataclass(frozen=True)
class CacheSize:
    """What one layer's keys and values take.

    Attributes:
        dtype: of what is held; codes have torch.int8.
    """

    kv_heads: int
    head_dim: int
    max_context: int
    dtype: torch.dtype
    device: torch.device

    def zeros(self, *shape: int) -> Tensor:
        """Return room for so many numbers."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


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

    def __init__(self, size: CacheSize) -> None:
        empty = size.zeros(size.kv_heads, 0, size.head_dim)
        self.key, self.value = empty, empty

    @property
    def length(self) -> int:
        """How many positions there are."""
        return self.key.shape[1]

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

    def __init__(self, size: CacheSize) -> None:
        shape = (size.kv_heads, size.max_context, size.head_dim)
        self.key, self.value = size.zeros(*shape), size.zeros(*shape)
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


class PagedCache:
    """Takes memory a page at a time, as the sequence grows, and never moves what it holds.

    After vLLM's paged attention (Kwon et al. 2023); with one sequence, pages need no sharing.

    Attributes:
        table: where each page of [2, kv_heads, PAGE, head_dim] begins, for kernels; int64.
    """

    def __init__(self, size: CacheSize) -> None:
        self._size, self._pages = size, list[Tensor]()
        num_pages = -(-size.max_context // PAGE)
        self.table = torch.zeros(num_pages, dtype=torch.int64, device=size.device)
        self.length = 0
        self.reserve(1)

    def reserve(self, length: int) -> None:
        """Have pages for `length` positions."""
        size, first = self._size, len(self._pages)
        for _ in range(first, -(-length // PAGE)):
            self._pages.append(size.zeros(2, size.kv_heads, PAGE, size.head_dim))
        if len(self._pages) > first:
            starts = [page.data_ptr() for page in self._pages[first:]]
            self.table[first : len(self._pages)] = torch.tensor(starts, device=size.device)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add key and value; return all of them so far."""
        rows, end = torch.stack((key, value)), self.length + key.shape[1]
        self.reserve(end)
        while self.length < end:
            page, at = divmod(self.length, PAGE)
            count = min(PAGE - at, end - self.length)
            done = rows.shape[2] - (end - self.length)
            self._pages[page][:, :, at : at + count] = rows[:, :, done : done + count]
            self.length += count
        return self.contents()

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on; the pages stay for what comes next."""
        self.length = min(self.length, length)

    def contents(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of all positions so far, as copies."""
        used = self._pages[: max(1, -(-self.length // PAGE))]
        key, value = torch.cat(used, 2)[:, :, : self.length]
        return key, value


class Int8Cache:
    """Holds codes of -127 to 127, and for each position and head the scale of its vector.

    Attributes:
        codes: where the codes are.
        scales: [2, kv_heads, max_context], float32: of keys and of values.
    """

    def __init__(
        self, kind: type[GrowingCache | StaticCache | PagedCache], size: CacheSize
    ) -> None:
        self.codes, self._dtype = kind(replace(size, dtype=torch.int8)), size.dtype
        scales = replace(size, dtype=torch.float32)
        self.scales = scales.zeros(2, size.kv_heads, size.max_context)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add key and value; return all of them so far, made from their codes."""
        start = self.codes.length
        rows = torch.stack((key, value)).float()
        scales = rows.abs().amax(-1, keepdim=True).clamp_min(1e-20) / 127
        codes = (rows / scales).round().to(torch.int8)
        self.scales[:, :, start : start + key.shape[1]] = scales[..., 0]
        return self._decoded(*self.codes.extend(codes[0], codes[1]))

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.codes.truncate(length)

    def contents(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of all positions so far."""
        return self._decoded(*self.codes.contents())

    def _decoded(self, *codes: Tensor) -> tuple[Tensor, Tensor]:
        scales = self.scales[:, :, : codes[0].shape[1], None]
        key, value = ((c * s).to(self._dtype) for c, s in zip(codes, scales, strict=True))
        return key, value


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


_KINDS: dict[str, type[GrowingCache | StaticCache | PagedCache]] = {
    "growing": GrowingCache,
    "static": StaticCache,
    "paged": PagedCache,
}


def storage(cache: LayerCache) -> StaticCache | PagedCache:
    """Return where a layer's own keys and values, or their codes, stay in place."""
    held = cache.codes if isinstance(cache, Int8Cache) else cache
    assert isinstance(held, StaticCache | PagedCache)
    return held


def make_caches(
    config: ModelConfig, levers: Levers, dtype: torch.dtype, device: torch.device, max_context: int
) -> list[LayerCache]:
    """Return an empty cache for each layer, of the kind that the levers `cache` and `kv` name."""
    kind = _KINDS[levers.cache]
    caches: list[LayerCache] = []
    layers = zip(config.kv_sources, config.kv_heads, config.head_dims, strict=True)
    for source, kv_heads, head_dim in layers:
        size = CacheSize(kv_heads, head_dim, max_context, dtype, device)
        if source is not None:
            caches.append(SharedCache(caches[source]))
        else:
            caches.append(Int8Cache(kind, size) if levers.kv == "int8" else kind(size))
    return caches
