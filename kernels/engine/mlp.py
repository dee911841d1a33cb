"""The gated feed-forward layer (Shazeer 2020, arXiv:2002.05202): SwiGLU or GeGLU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .checkpoint import Checkpoint
from .levers import Levers
from .linear import make_linear


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU with the tanh approximation, as Gemma was trained with."""
    return F.gelu(x, approximate="tanh")


class GatedMLP:
    """down(act(gate(x)) · up(x)); with `fuse`, gate and up are one matrix read in one pass."""

    def __init__(
        self, ckpt: Checkpoint, prefix: str, levers: Levers, act: Callable[[Tensor], Tensor]
    ) -> None:
        gate, up = ckpt.take(f"{prefix}.gate_proj.weight"), ckpt.take(f"{prefix}.up_proj.weight")
        self.act = act
        self.size = gate.shape[0]
        self.fused = levers.fuse == "qkv+gate-up"
        if self.fused:
            self.gate_up = make_linear(torch.cat((gate, up)), levers.weights)
        else:
            self.gate = make_linear(gate, levers.weights)
            self.up = make_linear(up, levers.weights)
        self.down = make_linear(ckpt.take(f"{prefix}.down_proj.weight"), levers.weights)

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [rows, hidden] to [rows, hidden]."""
        if self.fused:
            gate, up = torch.split(self.gate_up(x), self.size, -1)
        else:
            gate, up = self.gate(x), self.up(x)
        return self.down(self.act(gate) * up)
