"""Rounding weights to int8 per output row and to 4 bits per group of input columns."""

import torch
from torch import Tensor


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weight [rows, columns] symmetrically.

    Returns:
        codes int8 [rows, columns] and scales float32 [rows, 1]; weight ≈ codes · scales.
    """
    wide = weight.float()
    scales = (wide.abs().amax(dim=1, keepdim=True) / 127.0).clamp(min=1e-12)
    return (wide / scales).round().clamp(-127, 127).to(torch.int8), scales


def int4_groups(weight: Tensor, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Round weight [rows, columns] between the minimum and the maximum of each group.

    Returns:
        codes uint8 [rows, columns] from 0 to 15, scales and minima [rows, columns / group] in
        `dtype`; weight ≈ codes · scale + minimum.

    Raises:
        ValueError: a group that doesn't divide the columns.
    """
    groups = _grouped(weight, group)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15.0).clamp(min=1e-12)
    codes = ((groups - low) / scale).round().clamp(0, 15).to(torch.uint8)
    return codes.view(weight.shape), scale[..., 0].to(dtype), low[..., 0].to(dtype)


def int4_symmetric(weight: Tensor, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round weight [rows, columns] to multiples of a scale per group, from -8 to 7.

    Returns:
        codes uint8 [rows, columns] and scales [rows, columns / group] in `dtype`;
        weight ≈ (codes - 8) · scale.

    Raises:
        ValueError: a group that doesn't divide the columns.
    """
    groups = _grouped(weight, group)
    scale = (groups.abs().amax(-1, keepdim=True) / 7.0).clamp(min=1e-12)
    codes = (groups / scale).round().clamp(-8, 7) + 8
    return codes.to(torch.uint8).view(weight.shape), scale[..., 0].to(dtype)


def _grouped(weight: Tensor, group: int) -> Tensor:
    """Return weight [rows, columns] as float32 [rows, columns / group, group]."""
    rows, columns = weight.shape
    if columns % group:
        raise ValueError(f"int4 group {group} does not divide the {columns} input columns")
    return weight.float().view(rows, columns // group, group)
