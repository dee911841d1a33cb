"""One launch of `gemv.cu` as something that can be run, and what makes such launches."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cache import Int8Cache, LayerCache, PagedCache, storage
from .arguments import AttentionArgs, ChoiceArgs, GemvArgs, NormArgs, UnpackArgs, kernels
from .packed import DENSE, PackedLinear

MOST = 8  # tokens of a step, as in device.cuh
SPLITS = 32  # of the cached positions at most, as in attention.cuh
HEAD_DIMS, GROUPS = (64, 128, 256, 512), (1, 2, 3, 4, 8)  # that attention.cuh has kernels for
_BLOCKS_PER_SM = 8  # of a launch at most; what doesn't fit at once waits its turn
# How many warps share a tile: so many that all memory channels are busy, and more where a warp's
# part is long, since the last one to end decides. Measured on an H100.
_ENOUGH_WARPS, _LONG_PART = 8, 16_384  # per SM; bytes
# Tiles so long that it shows when some SMs have two and others one: they are halved.
_LONG_TILE = 256 * 1024  # bytes
# Windows so short that their splits are added up by one cluster of blocks.
_SHORT_WINDOW = 1024
_STORE, _GATED, _PER_LAYER, _BEST = range(4)


# Vectors [m, columns] bfloat16, or of the residual stream what a norm makes of it: then each block
# norms for itself, and the matrix needs no launch before its own. One vector, that is.
Inputs = Tensor | NormArgs


@dataclass(frozen=True)
class Launch:
    """One launch of a step; of a matrix whose inputs no block has room for, two.

    Attributes:
        label: the component, for profiles.
        nbytes: bytes that it has to read.
    """

    label: str
    nbytes: int
    run: Callable[[], None]


class Multiplier:
    """Makes launches on one device: of packed matrices, and of what lies between them.

    Args:
        dependent: let a kernel begin while the one before it ends (sm_90 and newer).
    """

    def __init__(self, device: torch.device, eps: float, *, dependent: bool) -> None:
        self._c = kernels()
        self._eps, self._dependent = eps, int(dependent)
        self._num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        self._device, self._rooms = device, dict[int, Tensor]()  # by size; launches share them

    def share(self, w: PackedLinear) -> int:
        """Return how many warps work on one tile of a matrix."""
        share, part = 1, w.weights.nbytes // w.tiles
        while share < 8:
            warps = w.tiles * share / self._num_sms
            if warps >= _ENOUGH_WARPS and part / share <= _LONG_PART:
                break
            share *= 2
        return share

    def grid(self, w: PackedLinear, *, halved: bool = False) -> int:
        """Return the number of blocks that work on a matrix."""
        units = 2 * w.tiles if halved else w.tiles
        return min(-(-units // self._teams_per_block(w)), _BLOCKS_PER_SM * self._num_sms)

    def halved(self, w: PackedLinear) -> bool:
        """Return whether `add` adds up each half of the columns by itself."""
        long = w.scheme.number == DENSE and w.weights.nbytes // w.tiles > _LONG_TILE
        return long and w.tiles < 2 * self._num_sms and w.num_stages % 2 == 0

    def teams(self, w: PackedLinear) -> int:
        """Return the number of teams of warps that work on tiles of a matrix."""
        return self.grid(w) * self._teams_per_block(w)

    def _teams_per_block(self, w: PackedLinear) -> int:
        return 8 // self.share(w)

    def norm_of(
        self,
        residual: Tensor,
        out: Tensor,
        *,
        norm: Tensor | None = None,
        delta: Tensor | None = None,
        halved: bool = False,
        delta_norm: Tensor | None = None,
        scale: float = 1.0,
        keep: Tensor | None = None,
    ) -> NormArgs:
        """Return what makes `out` [m, hidden] bfloat16: norm((residual + norm(delta)) · scale).

        Args:
            residual: [m, hidden] float32, as is `keep`.
            delta: [2, MOST, hidden] float32: what `add` left, which may be two halves.
            norm, delta_norm: weights; None: no such norm.
            keep: where the sum goes, if anywhere.
        """
        size = residual.shape[-1]
        pointers = (
            None if tensor is None else tensor.data_ptr()
            for tensor in (residual, delta, delta_norm, norm, keep, out)
        )
        to_second = delta.stride(0) if delta is not None and halved else 0
        return NormArgs(*pointers, self._eps, scale, size, 1 / size, to_second)

    def norm(self, args: NormArgs, m: int) -> Launch:
        """Norm m vectors of the residual stream."""

        def run() -> None:
            _check(self._c, self._c.norm_launch(ctypes.byref(args), m, self._dependent, _queue()))

        return Launch("norm", 0, run)

    def store(self, label: str, w: PackedLinear, m: int, x: Inputs, y: Tensor) -> Launch:
        """y [m, rows] float32."""
        return self._launch(label, w, m, x, output=_STORE, y=y.data_ptr())

    def add(self, label: str, w: PackedLinear, m: int, x: Inputs, delta: Tensor) -> Launch:
        """delta [2, MOST, rows] float32, for `norm_of`: the products, or one half and the other."""
        halved = self.halved(w)
        return self._launch(label, w, m, x, halved=halved, output=_STORE, y=delta.data_ptr())

    def gated(
        self,
        label: str,
        w: PackedLinear,
        m: int,
        x: Inputs,
        out: Tensor,
        *,
        silu: bool,
    ) -> Launch:
        """out [m, rows / 2] bfloat16: act(gate) · up, from interleaved rows."""
        return self._launch(label, w, m, x, output=_GATED, out=out.data_ptr(), silu=int(silu))

    def per_layer(
        self,
        label: str,
        w: PackedLinear,
        m: int,
        x: Inputs,
        out: Tensor,
        partner: Tensor,
        stride: int,
    ) -> Launch:
        """out [m, rows] bfloat16: gelu(y) · partner, whose rows lie `stride` apart."""
        return self._launch(
            label, w, m, x, output=_PER_LAYER, out=out.data_ptr(), partner=partner.data_ptr(),
            partner_stride=stride,
        )  # fmt: skip

    def best(
        self, label: str, w: PackedLinear, m: int, x: Inputs, best: Tensor, at: Tensor
    ) -> Launch:
        """best, at [teams, MOST]: each team's largest output and its row; nothing else is kept."""
        return self._launch(
            label, w, m, x, output=_BEST, best=best.data_ptr(), best_at=at.data_ptr()
        )

    def attention(
        self,
        m: int,
        buffers: dict[str, Tensor],
        cache: LayerCache,
        angles: tuple[Tensor, Tensor],
        *,
        query_norm: Tensor | None,
        key_norm: Tensor | None,
        kv_heads: int,
        group: int,
        head_dim: int,
        window: int,
        max_context: int,
        scale: float,
        shared: bool,
        value_norm: bool,
    ) -> Launch:
        """buffers["attended"] [m, heads · head_dim] from buffers["qkv"]; writes to the cache.

        Args:
            angles: cosines and sines [max_context, head_dim / 2], float32.
            shared: another layer has written the newest positions to this cache already.
        """
        pointers = {
            "qkv": buffers["qkv"], "cos": angles[0], "sin": angles[1], "query_norm": query_norm,
            "key_norm": key_norm, **_places(cache), "position": buffers["position"],
            "out": buffers["attended"], "part": buffers["part"], "most": buffers["most"],
            "total": buffers["total"], "arrived": buffers["arrived"],
        }  # fmt: skip
        args = AttentionArgs(
            **{name: None if t is None else t.data_ptr() for name, t in pointers.items()},
            eps=self._eps,
            scale=scale,
            m=m,
            kv_heads=kv_heads,
            group=group,
            head_dim=head_dim,
            window=window,
            context=max_context,
            shared=int(shared),
            value_norm=int(value_norm),
            clustered=0,
        )
        if self._dependent and 0 < window <= _SHORT_WINDOW:  # as sm_90 has clusters, too
            args.clustered = 1
            at_once = self._c.attention_clusters(ctypes.byref(args))
            args.clustered = int(at_once >= kv_heads)  # where a token's find no room, they queue

        def run() -> None:
            _check(self._c, self._c.attention_launch(ctypes.byref(args), self._dependent, _queue()))

        return Launch("attention", 0, run)

    def choose(self, teams: int, m: int, buffers: dict[str, Tensor], *, feed_back: bool) -> Launch:
        """The best of all teams' bests; fed back as the next step's token if asked for."""
        args = ChoiceArgs(
            buffers["best"].data_ptr(),
            buffers["best_at"].data_ptr(),
            teams,
            m,
            buffers["choices"].data_ptr(),
            *(
                buffers[name].data_ptr() if feed_back else None
                for name in ("tokens", "history", "count", "position")
            ),
        )

        def run() -> None:
            _check(self._c, self._c.choose_launch(ctypes.byref(args), self._dependent, _queue()))

        return Launch("choose", 0, run)

    def _launch(
        self,
        label: str,
        w: PackedLinear,
        m: int,
        x: Inputs,
        *,
        halved: bool = False,
        **outputs: Any,
    ) -> Launch:
        if isinstance(x, NormArgs):
            if x.halves and w.scheme.number != DENSE:
                raise ValueError(f"{label}: only dense matrices add up halves of what they norm")
            if m != 1:
                raise ValueError(f"{label}: a matrix norms one vector, not {m}")
        args = GemvArgs(
            weights=w.weights.data_ptr(),
            scales=None if w.scales is None else w.scales.data_ptr(),
            x=None if isinstance(x, NormArgs) else x.data_ptr(),
            scheme=w.scheme.number,
            asymmetric=int(w.scheme.asymmetric),
            tiles=w.tiles,
            rows=w.rows,
            columns=w.columns,
            group=w.group,
            m=m,
            grid=self.grid(w, halved=halved),
            share=self.share(w),
            halved=int(halved),
            before=x if isinstance(x, NormArgs) else NormArgs(),
            **outputs,
        )
        if nbytes := self._c.gemv_room(ctypes.byref(args)):
            if nbytes not in self._rooms:
                self._rooms[nbytes] = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
            args.fixed = self._rooms[nbytes].data_ptr()

        def run() -> None:
            _check(self._c, self._c.gemv_launch(ctypes.byref(args), self._dependent, _queue()))

        return Launch(label, w.nbytes, run)


def _places(cache: LayerCache) -> dict[str, Tensor]:
    """Return where attention finds keys and values, by what it calls that."""
    held = storage(cache)
    if isinstance(held, PagedCache):
        places = {"pages": held.table}
    else:
        places = {"key": held.key, "value": held.value}
    if isinstance(cache, Int8Cache):
        places.update(key_scale=cache.scales[0], value_scale=cache.scales[1])
    return places


def unpack(w: PackedLinear) -> Tensor:
    """Return the weights as dense bfloat16 [rows, columns]."""
    out = torch.empty(w.rows, w.columns, dtype=torch.bfloat16, device=w.weights.device)
    scales = None if w.scales is None else w.scales.data_ptr()
    what = GemvArgs(
        scheme=w.scheme.number, asymmetric=int(w.scheme.asymmetric), tiles=w.tiles, group=w.group
    )
    sizes = (w.num_stages, w.rows, w.columns, int(w.interleave))
    args = UnpackArgs(w.weights.data_ptr(), scales, out.data_ptr(), *sizes)
    c = kernels()
    _check(c, c.unpack_launch(ctypes.byref(what), ctypes.byref(args), _queue()))
    return out


def _check(c: Any, error: int) -> None:
    if error:
        raise RuntimeError(f"gemv.cu: CUDA says {c.error_name(error).decode()}")


def _queue() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
