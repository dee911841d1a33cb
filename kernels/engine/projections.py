"""Query, key and value of one layer, as three matrices or fused into one."""

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .config import ModelConfig
from .levers import Levers
from .linear import make_linear


class QKV:
    """Queries and keys come side by side, because both are rotated next."""

    def __init__(self, ckpt: Checkpoint, prefix: str, config: ModelConfig, levers: Levers) -> None:
        names = [f"{prefix}.{letter}_proj" for letter in "qkv"]
        weights = [ckpt.take(f"{name}.weight") for name in names]
        biases = [ckpt.take_if_present(f"{name}.bias") for name in names]
        self.head_dim = config.head_dim
        self.num_rotated = config.num_heads + config.num_kv_heads
        self.fused = levers.fuse != "none"
        if self.fused:
            present = [bias for bias in biases if bias is not None]
            bias = torch.cat(present) if present else None
            self.qkv = make_linear(torch.cat(weights), levers.weights, bias)
        else:
            self.q, self.k, self.v = (
                make_linear(w, levers.weights, b) for w, b in zip(weights, biases, strict=True)
            )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project x [rows, hidden].

        Returns:
            queries and keys [rows, num_heads + num_kv_heads, head_dim], and values
            [rows, num_kv_heads, head_dim].
        """
        rows = x.shape[0]
        if self.fused:
            packed = self.qkv(x).view(rows, -1, self.head_dim)
            return packed[:, : self.num_rotated], packed[:, self.num_rotated :]
        rotated = torch.cat((self.q(x), self.k(x)), -1)
        return rotated.view(rows, -1, self.head_dim), self.v(x).view(rows, -1, self.head_dim)
