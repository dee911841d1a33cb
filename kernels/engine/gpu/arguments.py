"""What `gemv.cu` exports, and its arguments as C structures."""

import ctypes
from functools import cache
from typing import Any

from ..compiled import build

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


class NormArgs(ctypes.Structure):
    """`Norm` in norm.cuh."""

    _fields_ = (
        *(
            (name, _POINTER)
            for name in ("residual", "delta", "delta_norm", "norm", "new_residual", "out")
        ),
        ("eps", _FLOAT),
        ("scale", _FLOAT),
        ("size", _INT),
        ("inverse_size", _FLOAT),
        ("halves", _INT),
    )


class GemvArgs(ctypes.Structure):
    """`Gemv` in stage.cuh."""

    _fields_ = (
        *(
            (name, _POINTER)
            for name in (
                "weights", "scales", "x", "fixed", "y", "out", "partner", "best", "best_at",
            )
        ),
        *(
            (name, _INT)
            for name in (
                "scheme", "asymmetric", "tiles", "rows", "columns", "group", "m", "output", "silu",
                "partner_stride", "grid", "share", "halved",
            )
        ),
        ("before", NormArgs),
    )  # fmt: skip


class AttentionArgs(ctypes.Structure):
    """`Attention` in attention.cuh."""

    _fields_ = (
        *(
            (name, _POINTER)
            for name in (
                "qkv", "cos", "sin", "query_norm", "key_norm", "key", "value", "key_scale",
                "value_scale", "pages", "position", "out", "part", "most", "total", "arrived",
            )
        ),
        ("eps", _FLOAT),
        ("scale", _FLOAT),
        *(
            (name, _INT)
            for name in (
                "m", "kv_heads", "group", "head_dim", "window", "context", "shared",
                "value_norm", "clustered",
            )
        ),
    )  # fmt: skip


class UnpackArgs(ctypes.Structure):
    """`Unpack` in gemv.cu."""

    _fields_ = (
        *((name, _POINTER) for name in ("weights", "scales", "out")),
        *((name, _INT) for name in ("stages", "rows", "columns", "interleaved")),
    )


class ChoiceArgs(ctypes.Structure):
    """`Choice` in gemv.cu."""

    _fields_ = (
        ("best", _POINTER),
        ("best_at", _POINTER),
        ("teams", _INT),
        ("m", _INT),
        *((name, _POINTER) for name in ("choices", "inputs", "history", "count", "position")),
    )


@cache
def kernels() -> Any:
    """Build `gemv.cu` and declare what it exports."""
    c = build("cuda")
    for function in (c.gemv_launch, c.choose_launch, c.attention_launch):
        function.argtypes, function.restype = [_POINTER, _INT, _POINTER], _INT
    c.attention_clusters.argtypes, c.attention_clusters.restype = [_POINTER], _INT
    c.gemv_room.argtypes, c.gemv_room.restype = [_POINTER], ctypes.c_size_t
    c.norm_launch.argtypes, c.norm_launch.restype = [_POINTER, _INT, _INT, _POINTER], _INT
    c.unpack_launch.argtypes, c.unpack_launch.restype = [_POINTER, _POINTER, _POINTER], _INT
    c.error_name.argtypes, c.error_name.restype = [_INT], ctypes.c_char_p
    return c
