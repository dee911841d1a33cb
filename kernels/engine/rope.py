"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-rotated layout."""

import torch
from torch import Tensor

from .config import Rope


class RotaryTable:
    """Cosines and signed sines of every position, computed once in float32.

    rotate_half(x) is roll(x, half) with the first half's sign turned. The sign is put into the sine
    table, which leaves a roll, two products and a sum. They are not fused into a multiply-add: it
    would round once less often than transformers does, and the logits would no longer be its own.
    """

    def __init__(
        self, rope: Rope, max_context: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Made on the CPU whatever the device: its sines are the reference's, to the last bit.
        counts = torch.arange(0, rope.head_dim, 2, dtype=torch.float32, device="cpu")
        inverse = 1.0 / (rope.theta ** (counts / rope.head_dim)) / rope.factor
        inverse[rope.num_angles :] = 0.0  # a partial rotation turns the first pairs only
        positions = torch.arange(max_context, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, inverse)
        cos, sin = angles.cos(), angles.sin()
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        self.cos = cos.to(device, dtype)[:, None, :]  # [max_context, 1, head_dim]
        self.sin = sin.to(device, dtype)[:, None, :]

    def at(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Return (cos, signed sin), each [length, 1, head_dim], from position `start` on."""
        return self.cos[start : start + length], self.sin[start : start + length]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [length, num_heads, head_dim] by the angles in cos and signed sin."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
