"""Calling `gemv.cu`: its arguments as C structures, and one launch as something that can be run."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..compiled import SOURCES, build
from .packed import PackedLinear

MOST = 8  # vectors that one launch multiplies, as in gemv.cu
BLOCKS_PER_SM = 3
_STORE, _GATED, _PER_LAYER, _BEST = range(4)
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


class _Gemv(ctypes.Structure):
    _fields_ = (
        *(
            (name, _POINTER)
            for name in (
                "weights", "scales", "x", "residual", "delta", "delta_norm", "input_norm",
                "new_residual",
            )
        ),
        *((name, _FLOAT) for name in ("eps", "residual_scale")),
        *((name, _POINTER) for name in ("y", "out", "partner", "best", "best_at")),
        *(
            (name, _INT)
            for name in (
                "scheme", "asymmetric", "tiles", "rows", "columns", "group", "m", "output", "silu",
                "partner_stride", "grid",
            )
        ),
    )  # fmt: skip


class _Choice(ctypes.Structure):
    _fields_ = (
        ("best", _POINTER),
        ("best_at", _POINTER),
        ("grid", _INT),
        ("m", _INT),
        *((name, _POINTER) for name in ("choices", "inputs", "history", "count", "position")),
    )


@dataclass(frozen=True)
class Launch:
    """One kernel launch of a step.

    Attributes:
        label: the component, for profiles.
        nbytes: bytes that it has to read.
    """

    label: str
    nbytes: int
    run: Callable[[], None]


@dataclass(frozen=True)
class Stream:
    """The residual stream as an input: x + norm(delta), scaled, then normed.

    Attributes:
        residual: [m, hidden] float32.
        delta: what is added, or None.
        delta_norm: weight of the norm that it goes through, or None.
        scale: factor on the sum.
        keep: where the sum goes; not `residual` itself, which others still read.
        norm: weight of the norm before the matrix, or None.
    """

    residual: Tensor
    delta: Tensor | None = None
    delta_norm: Tensor | None = None
    scale: float = 1.0
    keep: Tensor | None = None
    norm: Tensor | None = None


class Multiplier:
    """Makes launches of packed matrices on one device.

    Args:
        dependent: let a kernel begin while the one before it ends (sm_90 and newer).
    """

    def __init__(self, device: torch.device, eps: float, *, dependent: bool) -> None:
        self._c = kernels()
        self._eps, self._dependent = eps, int(dependent)
        self._num_sms = torch.cuda.get_device_properties(device).multi_processor_count

    def grid(self, packed: PackedLinear) -> int:
        """Return the number of blocks that work on a matrix."""
        return min(packed.tiles, BLOCKS_PER_SM * self._num_sms)

    def store(
        self, label: str, w: PackedLinear, m: int, source: Tensor | Stream, y: Tensor
    ) -> Launch:
        """y [m, rows] float32."""
        return self._launch(label, w, m, source, output=_STORE, y=y.data_ptr())

    def gated(
        self,
        label: str,
        w: PackedLinear,
        m: int,
        source: Tensor | Stream,
        out: Tensor,
        *,
        silu: bool,
    ) -> Launch:
        """out [m, rows / 2] bfloat16: act(gate) · up, from interleaved rows."""
        return self._launch(label, w, m, source, output=_GATED, out=out.data_ptr(), silu=int(silu))

    def per_layer(
        self,
        label: str,
        w: PackedLinear,
        m: int,
        source: Tensor | Stream,
        out: Tensor,
        partner: Tensor,
        stride: int,
    ) -> Launch:
        """out [m, rows] bfloat16: gelu(y) · partner, whose rows lie `stride` apart."""
        return self._launch(
            label, w, m, source, output=_PER_LAYER, out=out.data_ptr(), partner=partner.data_ptr(),
            partner_stride=stride,
        )  # fmt: skip

    def best(
        self, label: str, w: PackedLinear, m: int, source: Tensor | Stream, best: Tensor, at: Tensor
    ) -> Launch:
        """best, at [grid, MOST]: each block's largest output and its row; nothing else is kept."""
        return self._launch(
            label, w, m, source, output=_BEST, best=best.data_ptr(), best_at=at.data_ptr()
        )

    def choose(self, grid: int, m: int, buffers: dict[str, Tensor], *, feed_back: bool) -> Launch:
        """The best of all blocks' bests; fed back as the next step's token if asked for."""
        args = _Choice(
            buffers["best"].data_ptr(),
            buffers["best_at"].data_ptr(),
            grid,
            m,
            buffers["choices"].data_ptr(),
            *(
                buffers[name].data_ptr() if feed_back else None
                for name in ("tokens", "history", "count", "position")
            ),
        )

        def run() -> None:
            self._check(self._c.choose_launch(ctypes.byref(args), self._dependent, _queue()))

        return Launch("choose", 0, run)

    def _launch(
        self, label: str, w: PackedLinear, m: int, source: Tensor | Stream, **outputs: int
    ) -> Launch:
        args = _Gemv(
            weights=w.weights.data_ptr(),
            scales=None if w.scales is None else w.scales.data_ptr(),
            eps=self._eps,
            residual_scale=1.0,
            scheme=w.scheme.number,
            asymmetric=int(w.scheme.asymmetric),
            tiles=w.tiles,
            rows=w.rows,
            columns=w.columns,
            group=w.group,
            m=m,
            grid=self.grid(w),
            **outputs,
        )
        if isinstance(source, Stream):
            args.residual_scale = source.scale
            args.residual = source.residual.data_ptr()
            for name, tensor in (
                ("delta", source.delta),
                ("delta_norm", source.delta_norm),
                ("input_norm", source.norm),
                ("new_residual", source.keep),
            ):
                setattr(args, name, None if tensor is None else tensor.data_ptr())
        else:
            args.x = source.data_ptr()

        def run() -> None:
            self._check(self._c.gemv_launch(ctypes.byref(args), self._dependent, _queue()))

        return Launch(label, w.nbytes, run)

    def _check(self, error: int) -> None:
        if error:
            raise RuntimeError(f"gemv.cu: CUDA says {self._c.error_name(error).decode()}")


def _queue() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def kernels() -> Any:
    """Build `gemv.cu` and declare what it exports."""
    c = build("slipstream_gemv", SOURCES / "gpu" / "gemv.cu")
    for function in (c.gemv_launch, c.choose_launch):
        function.argtypes, function.restype = [_POINTER, _INT, _POINTER], _INT
    c.error_name.argtypes, c.error_name.restype = [_INT], ctypes.c_char_p
    return c
