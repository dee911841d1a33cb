"""Weights laid out for `gemv.cu`, and the way back to a dense matrix, which a prompt goes through.

A matrix is held once. Few vectors are multiplied by the packed kernel; many go through a dense copy
that is made for the moment, since unpacking costs little beside a product with a whole prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..quantise import int4_groups, int4_symmetric, int8_rows

TILE = 16
DENSE, INT8, INT4 = 0, 1, 2
_STAGE = {DENSE: 32, INT8: 64, INT4: 128}  # columns


@dataclass(frozen=True)
class Scheme:
    """How a matrix is held: dense, int8, int4-gN, int4-channel; int4 with minima or symmetric."""

    number: int
    group: int = 0  # columns; 0: all of a row
    asymmetric: bool = False


def read_scheme(name: str) -> Scheme:
    """Read a lever's value: dense, int8, int4-g128, int4-channel, each int4 perhaps with -sym."""
    if name == "dense":
        return Scheme(DENSE)
    if name == "int8":
        return Scheme(INT8)
    size = name.removeprefix("int4-").removesuffix("-sym")
    group = 0 if size == "channel" else int(size.removeprefix("g"))
    return Scheme(INT4, group, asymmetric=not name.endswith("-sym"))


class PackedLinear:
    """y = W xᵀ with W [rows, columns] in tiles of 16 rows.

    Args:
        interleave: the first and the second half of the rows alternate, eight by eight (gate and
            up of a feed-forward layer), so that one tile has both halves of its outputs.

    Raises:
        ValueError: columns that fill no whole units, or a group that doesn't divide them.
    """

    def __init__(self, weight: Tensor, scheme: str, *, interleave: bool = False) -> None:
        self.scheme = read_scheme(scheme)
        self.rows, self.columns = weight.shape
        self.interleave, self.dtype = interleave, weight.dtype
        unit = _STAGE[self.scheme.number]
        if self.columns % unit:
            raise ValueError(f"{scheme}: {self.columns} columns are no multiple of {unit}")
        self.group = self.scheme.group or self.columns
        self.tiles = -(-self.rows // TILE)
        ordered = self._ordered(weight)
        if self.tiles * TILE != self.rows:
            pad = weight.new_zeros(self.tiles * TILE - self.rows, self.columns)
            ordered = torch.cat((ordered, pad))
        self.scales: Tensor | None = None
        if self.scheme.number == DENSE:
            self.weights = _to_lanes(ordered.to(torch.bfloat16), 2)
        elif self.scheme.number == INT8:
            codes, scales = int8_rows(ordered)
            self.weights = _to_lanes(codes, 4)
            self.scales = scales.view(self.tiles, TILE).contiguous()
        else:
            self.weights = self._packed_int4(ordered)

    @property
    def nbytes(self) -> int:
        """Bytes that one multiplication reads."""
        return self.weights.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x [rows, columns] through a dense copy."""
        if self.weights.is_cuda:
            from .launches import unpack

            return F.linear(x, unpack(self))
        return F.linear(x, self.dense())

    @property
    def num_stages(self) -> int:
        """How many pieces a tile is read in."""
        return self.columns // _STAGE[self.scheme.number]

    def dense(self) -> Tensor:
        """Return the weights [rows, columns] in plain torch, on any device."""
        tiled: Tensor
        if self.scheme.number == DENSE:
            tiled = _from_lanes(self.weights, 2, self.columns)
        elif self.scheme.number == INT8:
            assert self.scales is not None
            codes = _from_lanes(self.weights, 4, self.columns)
            tiled = codes.float() * self.scales.view(-1, 1)
        else:
            tiled = self._dense_int4()
        if self.interleave:
            tiled = tiled.view(-1, 2, TILE // 2, self.columns).transpose(0, 1)
            tiled = tiled.reshape(-1, self.columns)
        return tiled[: self.rows].to(self.dtype)

    def _ordered(self, weight: Tensor) -> Tensor:
        if not self.interleave:
            return weight
        if self.rows % TILE:
            raise ValueError(f"{self.rows} rows of gate and up are no multiple of {TILE}")
        halves = weight.view(2, -1, TILE // 2, self.columns)
        return halves.transpose(0, 1).reshape(self.rows, self.columns)

    def _packed_int4(self, weight: Tensor) -> Tensor:
        """Return bytes [tiles, stages, 1024 + those of the stage's scales]."""
        if self.columns % self.group or self.group % 32:
            raise ValueError(
                f"int4 groups of {self.group} columns: has to divide {self.columns} columns and be "
                "a multiple of 32"
            )
        if self.scheme.asymmetric:
            codes, scale, minimum = int4_groups(weight, self.group, torch.float16)
            tables = torch.stack((scale, minimum), -1)  # [rows, groups, 2]
        else:
            codes, scale = int4_symmetric(weight, self.group, torch.float16)
            tables = scale[..., None]
        stages = self.columns // 128
        # A group wider than a stage is repeated for each of its stages.
        starts = torch.arange(0, self.columns, min(self.group, 128), device=weight.device)
        spread = tables[:, starts // self.group]
        by_stage = spread.view(self.tiles, TILE, stages, -1, tables.shape[-1])
        scales = by_stage.permute(0, 2, 3, 1, 4).contiguous().view(torch.uint8)
        split = _to_lanes(codes, 4)
        both = split[..., 0, :] | (split[..., 1, :] << 4)  # rows g and g + 8 in a byte
        # A lane's 16 bytes have two units.
        units = both.view(self.tiles, stages, 2, 2, 8, 4, 2, 4).permute(0, 1, 2, 4, 5, 3, 6, 7)
        lanes = units.reshape(self.tiles, stages, 1024)
        return torch.cat((lanes, scales.view(self.tiles, stages, -1)), -1)

    def _dense_int4(self) -> Tensor:
        stages, size = self.columns // 128, min(self.group, 128)
        lanes, scales = self.weights[..., :1024], self.weights[..., 1024:].contiguous()
        units = lanes.reshape(self.tiles, stages, 2, 8, 4, 2, 2, 4).permute(0, 1, 2, 5, 3, 4, 6, 7)
        codes = _from_lanes(torch.stack((units & 15, units >> 4), -2), 4, self.columns)
        tables = scales.view(torch.float16).view(self.tiles, stages, 128 // size, TILE, -1)
        tables = tables.permute(0, 3, 1, 2, 4).reshape(codes.shape[0], -1, tables.shape[-1])
        scale = tables[..., :1].float()
        groups = codes.view(codes.shape[0], -1, size).float()
        if self.scheme.asymmetric:
            return (groups * scale + tables[..., 1:].float()).view(-1, self.columns)
        return ((groups - 8) * scale).view(-1, self.columns)


def _to_lanes(matrix: Tensor, word: int) -> Tensor:
    """Lay [rows, columns] out as [tiles, units, 8, 4, 2, 2, word]; see stage.cuh.

    word: the neighbours that lie in 32 bits, 2 numbers or 4 codes; a unit has 8 · word columns.
    """
    rows, columns = matrix.shape
    # row = 8 half + g; column = 8 · word · unit + 2 · word · t + word · pair + one
    split = matrix.view(rows // TILE, 2, 8, columns // (8 * word), 4, 2, word)
    return split.permute(0, 3, 2, 4, 5, 1, 6).contiguous()  # tile, unit, g, t, pair, half, one


def _from_lanes(lanes: Tensor, word: int, columns: int) -> Tensor:
    """Undo `_to_lanes`: [rows, columns]."""
    split = lanes.view(-1, columns // (8 * word), 8, 4, 2, 2, word)
    return split.permute(0, 5, 2, 1, 3, 4, 6).reshape(-1, columns)
