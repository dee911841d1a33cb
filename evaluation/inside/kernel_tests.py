"""Reference tests of an engine's kernels: each against plain arithmetic in float64.

Runs beside the worker, in the untrusted process, so a result here is help for whoever writes a
kernel and no evidence. What is tested is the variant's own package `engine`; what it is compared
with stands here.
"""

import ctypes
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Case = tuple[str, float, float]  # what was tried, its relative error, the bound
_BF16 = 6e-3  # of a result whose inputs or steps are rounded to bfloat16
# Rounding random weights, whose values lie on no grid: relative to their size.
_ROUNDING = {"dense": 0.003, "int8": 0.01, "int4-g32": 0.09, "int4-g64": 0.1, "int4-g128": 0.12}


def run(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per case; a kernel that fails has one with the error in words."""
    rows: list[dict[str, Any]] = []
    for name in names or TESTS:
        try:
            for case, error, bound in TESTS[name]():
                if math.isfinite(error):
                    rows.append(_row(name, case, error, bound, error <= bound))
                else:
                    rows.append(_row(name, f"{case}: gives {error}", -1.0, bound, False))
        except NotHereError as error:
            rows.append(_row(name, f"not tested here: {error}", -1.0, 0.0, True))
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            rows.append(_row(name, f"{type(error).__name__}: {line}"[:300], -1.0, 0.0, False))
    return rows


class NotHereError(Exception):
    """This machine lacks what a kernel needs."""


def _row(kernel: str, case: str, error: float, bound: float, ok: bool) -> dict[str, Any]:
    return {"kernel": kernel, "case": case, "error": error, "bound": bound, "ok": ok}


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _off(found: Tensor, exact: Tensor) -> float:
    """Return the error relative to the size of what is right."""
    return float((found.double() - exact).norm() / exact.norm())


def _matrix() -> Iterator[Case]:
    """Of each format, for one token and for more than the packed kernels take."""
    from engine.linear import make_linear  # type: ignore[import-not-found]

    weight = _random(96, 256).bfloat16()
    for scheme, rounding in _ROUNDING.items():
        matrix = make_linear(weight, scheme)
        twin = matrix(torch.eye(256).bfloat16()).double().T  # the weights as it holds them
        yield f"{scheme}: weights", _off(twin, weight.double()), rounding
        for rows in (1, 3, 12):
            x = _random(rows, 256, seed=rows).bfloat16()
            yield f"{scheme}: {rows} rows", _off(matrix(x), x.double() @ twin.T), _BF16


def _norm() -> Iterator[Case]:
    from engine.norm import RMSNorm  # type: ignore[import-not-found]

    weight, x = _random(192, seed=1).bfloat16(), 3 * _random(4, 192, seed=2).bfloat16()
    for by_layer_norm in (False, True):
        for offset in (0.0, 1.0):
            norm = RMSNorm(weight, 1e-6, offset=offset, by_layer_norm=by_layer_norm)
            size = (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
            exact = x.double() / size * (weight.double() + offset)
            how = "layer-norm" if by_layer_norm else "rms-norm"
            yield f"{how}, offset {offset:g}", _off(norm(x), exact), _BF16


def _rotation() -> Iterator[Case]:
    from engine.config import Rope  # type: ignore[import-not-found]
    from engine.rope import RotaryTable, rotate  # type: ignore[import-not-found]

    for num_angles in (32, 8):
        rope = Rope(theta=10_000.0, head_dim=64, num_angles=num_angles)
        table = RotaryTable(rope, 128, torch.float32, torch.device("cpu"))
        x = _random(5, 3, 64, seed=3)
        cos, sin = table.at(100, 5)
        inverse = 10_000.0 ** -(torch.arange(32).double() / 32)
        inverse[num_angles:] = 0.0
        angles = torch.outer(torch.arange(100, 105).double(), inverse)[:, None]
        first, second = x.double()[..., :32], x.double()[..., 32:]
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
        exact = torch.cat((turned.real, turned.imag), -1)
        yield f"{num_angles} of 32 pairs", _off(rotate(x, cos, sin), exact), 1e-5


def _attention() -> Iterator[Case]:
    from engine.attention import attend  # type: ignore[import-not-found]

    for length, total, window in ((1, 20, None), (1, 20, 6), (20, 20, None), (5, 20, 6)):
        query = _random(length, 6, 32, seed=4)
        key, value = _random(2, total, 32, seed=5), _random(2, total, 32, seed=6)
        exact = _attended(query, key, value, window)
        for grouped in (False, True):
            found = attend(query, key, value, scale=0.2, window=window, grouped=grouped)
            how = f"{length} of {total}, window {window}, {'grouped' if grouped else 'repeated'}"
            yield how, _off(found, exact), 1e-5


def _attended(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    length, total = len(query), key.shape[1]
    out = torch.zeros(length, 6, 32, dtype=torch.float64)
    for row in range(length):
        end = total - length + row + 1
        begin = 0 if window is None else max(0, end - window)
        for head in range(6):
            of = head // 3
            scores = key[of, begin:end].double() @ query[row, head].double() * 0.2
            out[row, head] = scores.softmax(-1) @ value[of, begin:end].double()
    return out.view(length, -1)


def _feed_forward() -> Iterator[Case]:
    from engine.levers import Levers  # type: ignore[import-not-found]
    from engine.mlp import GatedMLP  # type: ignore[import-not-found]

    parts = {
        f"it.{name}.weight": (_random(*shape, seed=seed) / 8).bfloat16()
        for seed, (name, shape) in enumerate(
            {"gate_proj": (128, 64), "up_proj": (128, 64), "down_proj": (64, 128)}.items()
        )
    }
    gate, up, down = (part.double() for part in parts.values())
    ckpt = SimpleNamespace(take=parts.__getitem__)
    silu = torch.nn.functional.silu
    for fuse in ("none", "qkv+gate-up"):
        layer = GatedMLP(ckpt, "it", Levers(fuse=fuse), silu)
        for rows in (1, 12):
            x = _random(rows, 64, seed=7).bfloat16()
            exact = (silu(x.double() @ gate.T) * (x.double() @ up.T)) @ down.T
            yield f"fuse={fuse}, {rows} rows", _off(layer(x), exact), 2 * _BF16


def _native_matrix() -> Iterator[Case]:
    """The matrices of step=native, with vectors and without."""
    from engine.native import native_functions  # type: ignore[import-not-found]
    from engine.packing import pack  # type: ignore[import-not-found]

    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise NotHereError("no C++ compiler")
    functions, weight = native_functions(), _random(75, 128).bfloat16()
    for scheme in ("dense", "int8", "int4-g32", "int4-g64"):
        for int8_inputs in (False, True) if scheme != "dense" else (False,):
            packed = pack(weight, scheme, int8_inputs=int8_inputs)
            for portable in (0, 1):

                def multiply(x: Tensor, packed: Any = packed, portable: int = portable) -> Tensor:
                    y = torch.empty(len(x), 75)
                    functions.matrix_multiply(
                        ctypes.byref(packed.spec), x.data_ptr(), len(x), portable, y.data_ptr()
                    )
                    return y

                how = f"{scheme}, {'int8' if int8_inputs else 'bf16'} inputs" + (
                    ", portable" if portable else ""
                )
                twin = multiply(torch.eye(128)).double().T
                yield f"{how}: weights", _off(twin, weight.double()), _ROUNDING[scheme] + 0.01
                x = _random(5, 128, seed=8).bfloat16().float()
                bound = 0.02 if int8_inputs else _BF16
                yield f"{how}: 5 rows", _off(multiply(x), x.double() @ twin.T), bound


def _gpu_matrix() -> Iterator[Case]:
    """The packed matrices of the GPU's steps."""
    if not torch.cuda.is_available():
        raise NotHereError("no GPU")
    from engine.gpu.launches import Multiplier  # type: ignore[import-not-found]
    from engine.gpu.packed import PackedLinear  # type: ignore[import-not-found]

    device = torch.device("cuda")
    make = Multiplier(device, 1e-6, dependent=torch.cuda.get_device_capability() >= (9, 0))
    weight = _random(75, 256).bfloat16().to(device)
    for scheme in ("dense", "int8", "int4-g32", "int4-g128"):
        matrix = PackedLinear(weight, scheme)
        for rows in (1, 3, 8):
            x = _random(rows, 256, seed=rows).bfloat16().to(device)
            y = torch.full((rows, 75), math.nan, device=device)
            make.store("matrix", matrix, rows, x, y).run()
            twin = matrix.dense().double()
            yield f"{scheme}: {rows} rows", _off(y.cpu(), (x.double() @ twin.T).cpu()), _BF16


TESTS: dict[str, Callable[[], Iterator[Case]]] = {
    "matrix": _matrix,
    "norm": _norm,
    "rotation": _rotation,
    "attention": _attention,
    "feed-forward": _feed_forward,
    "native-matrix": _native_matrix,
    "gpu-matrix": _gpu_matrix,
}
