"""Weights laid out for `gemv.h`: tiles of 16 rows, blocks of 32 columns."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from .quantise import int4_groups, int8_rows

_TILE, _BLOCK = 16, 32


class MatrixSpec(ctypes.Structure):
    """One packed matrix, as C++ sees it (`MatrixSpec` in step.cpp)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scheme", ctypes.c_int),
        ("tiles", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("blocks", ctypes.c_int),
        ("group", ctypes.c_int),
        ("int8_inputs", ctypes.c_int),
    )


@dataclass(frozen=True)
class Packed:
    """A packed matrix and the tensors that its pointers point into."""

    spec: MatrixSpec
    tensors: tuple[Tensor, ...]


def pack(weight: Tensor, scheme: str, *, int8_inputs: bool, bias: Tensor | None = None) -> Packed:
    """Pack weight [rows, columns] as `scheme` says: dense, int8 or int4-gN.

    Args:
        int8_inputs: round the vectors it multiplies to int8 per block, for integer arithmetic;
            not for dense weights.

    Raises:
        ValueError: columns that are no multiple of 32, or of the group.
    """
    rows, columns = weight.shape
    if columns % _BLOCK:
        raise ValueError(f"a matrix of {columns} columns: step=native needs a multiple of {_BLOCK}")
    wide = torch.zeros(-rows % _TILE, columns)
    padded = torch.cat((weight.float(), wide))
    tiles, blocks = padded.shape[0] // _TILE, columns // _BLOCK
    scale: Tensor | None = None
    group = 1
    if scheme == "dense":
        number = 0
        halves = padded.to(torch.bfloat16).view(tiles, _TILE, columns // 2, 2)
        data = halves.transpose(1, 2).contiguous()
    elif scheme == "int8":
        number = 1
        codes, scale = int8_rows(padded)
        shifted = (codes.to(torch.int16) + 128).to(torch.uint8)
        data = shifted.view(tiles, _TILE, columns // 4, 4).transpose(1, 2).contiguous()
    else:
        number = 2
        size = int(scheme.removeprefix("int4-g"))
        if size % _BLOCK:
            raise ValueError(f"{scheme}: step=native needs groups of a multiple of {_BLOCK}")
        group = size // _BLOCK
        data = _pack_int4(padded, size)
    offset = None if bias is None else torch.cat((bias.float(), torch.zeros(-rows % _TILE)))
    spec = MatrixSpec(
        data.data_ptr(),
        None if scale is None else scale.data_ptr(),
        None if offset is None else offset.data_ptr(),
        number,
        tiles,
        rows,
        blocks,
        group,
        int(int8_inputs and number != 0),
    )
    return Packed(spec, tuple(t for t in (data, scale, offset) if t is not None))


def _pack_int4(weight: Tensor, group: int) -> Tensor:
    """Return bytes [tiles, groups, 64 + 256 · blocks per group]."""
    codes, scale, minimum = int4_groups(weight, group, torch.float16)
    rows, columns = weight.shape
    tiles, groups, per_group = rows // _TILE, columns // group, group // _BLOCK
    # [tile, row, group, block, half, quarter, column] → [tile, group, block, quarter, row, column]
    split = codes.view(tiles, _TILE, groups, per_group, 2, 4, 4).permute(0, 2, 3, 4, 5, 1, 6)
    packed = split[:, :, :, 0] | (split[:, :, :, 1] << 4)

    def table(values: Tensor) -> Tensor:
        by_tile = values.view(tiles, _TILE, groups).transpose(1, 2).contiguous()
        return by_tile.view(torch.uint8).view(tiles, groups, 2 * _TILE)

    flat = packed.reshape(tiles, groups, 8 * group)
    return torch.cat((table(scale), table(minimum), flat), -1).contiguous()
