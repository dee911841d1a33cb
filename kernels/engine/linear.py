"""Matrices: dense, int8 per output row, int4 per group of input columns.

Decoding one token multiplies every matrix by one vector, so its time is the time to read the
weights: half the bytes, half the time. The packed kernels are torch's own (`_weight_int8pack_mm`,
`_weight_int4pack_mm_for_cpu`); they lose to a dense product once several rows share one read of
the weights, so longer inputs (a prompt) go through the same rounded weights, held dense.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .quantise import int4_groups, int8_rows

PACKED_ROWS = 8  # up to here the packed kernels win on AVX-512 machines; measured


class Linear(Protocol):
    """A matrix that multiplies x [rows, in] to [rows, out].

    Plain objects, not `nn.Module`s: at 200 matrices a token, a module's call costs as much as the
    norms do.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x."""
        ...


class DenseLinear:
    """y = x Wᵀ + b with W [out, in] in the activations' dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight.contiguous()
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] to [rows, out]."""
        return F.linear(x, self.weight, self.bias)


class Int8Linear:
    """Symmetric int8 weights with one scale per output row."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        packed, scales = int8_rows(weight)
        self.packed = packed
        self.scales = scales[:, 0].to(weight.dtype)
        self.dense = (packed.float() * scales).to(weight.dtype)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] to [rows, out]."""
        if x.shape[0] > PACKED_ROWS:
            return F.linear(x, self.dense, self.bias)
        y = torch._weight_int8pack_mm(x, self.packed, self.scales)
        return y if self.bias is None else y + self.bias


class Int4Linear:
    """Asymmetric 4-bit weights: w = (q - 8) scale + zero, per group of input columns."""

    def __init__(self, weight: Tensor, group: int, bias: Tensor | None = None) -> None:
        codes, scale, low = int4_groups(weight, group, torch.float32)
        out, size = weight.shape
        # The kernel reads scale and zero in the activations' dtype: round them before the dense
        # copy is made, so that both paths hold the same weights.
        zero = (low + 8.0 * scale).to(weight.dtype)[..., None]
        scale = scale.to(weight.dtype)[..., None]
        integers = codes.to(torch.int32)
        self.packed = torch._convert_weight_to_int4pack_for_cpu(integers, 1)
        self.scales_and_zeros = torch.cat((scale, zero), -1).transpose(0, 1).contiguous()
        groups = codes.view(out, size // group, group).float()
        dense = (groups - 8.0) * scale.float() + zero.float()
        self.dense = dense.view(out, size).to(weight.dtype)
        self.bias = bias
        self.group = group

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, in] to [rows, out]."""
        if x.shape[0] > PACKED_ROWS:
            return F.linear(x, self.dense, self.bias)
        y = torch._weight_int4pack_mm_for_cpu(x, self.packed, self.group, self.scales_and_zeros)
        return y if self.bias is None else y + self.bias


def make_linear(weight: Tensor, scheme: str, bias: Tensor | None = None) -> Linear:
    """Build the matrix that `scheme` names: dense, int8 or int4-gN."""
    if scheme == "dense":
        return DenseLinear(weight, bias)
    if scheme == "int8":
        return Int8Linear(weight, bias)
    return Int4Linear(weight, int(scheme.removeprefix("int4-g")), bias)
