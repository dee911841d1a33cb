"""Query, key and value of one layer, as up to three matrices or fused into one."""

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .config import ModelConfig
from .levers import Levers
from .linear import make_linear


class QKV:
    """Queries and keys come side by side, because both are rotated next.

    A layer that reads another's cache projects queries only, and one whose values are its keys
    (before norm and rotation) has no value matrix.
    """

    def __init__(
        self, ckpt: Checkpoint, prefix: str, index: int, config: ModelConfig, levers: Levers
    ) -> None:
        self.shared = config.kv_sources[index] is not None
        self.values_are_keys = config.values_are_keys[index] and not self.shared
        letters = "q" if self.shared else "qk" if self.values_are_keys else "qkv"
        names = [f"{prefix}.{letter}_proj" for letter in letters]
        weights = [ckpt.take(f"{name}.weight") for name in names]
        biases = [ckpt.take_if_present(f"{name}.bias") for name in names]
        self.head_dim = config.head_dims[index]
        self.num_rotated = config.num_heads + (0 if self.shared else config.kv_heads[index])
        self.first_value = config.num_heads if self.values_are_keys else self.num_rotated
        self.fused = levers.fuse != "none"
        if self.fused:
            present = [bias for bias in biases if bias is not None]
            bias = torch.cat(present) if present else None
            self.qkv = make_linear(torch.cat(weights), levers.weights, bias)
        else:
            matrices = {
                letter: make_linear(weight, levers.weights, bias)
                for letter, weight, bias in zip(letters, weights, biases, strict=True)
            }
            self.q, self.k, self.v = matrices["q"], matrices.get("k"), matrices.get("v")

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project x [rows, hidden].

        Returns:
            queries and keys [rows, num_heads + num_kv_heads, head_dim], and values
            [rows, num_kv_heads, head_dim]; without its own cache, queries and no values
            [rows, 0, head_dim].
        """
        rows = x.shape[0]
        if self.fused:
            packed = self.qkv(x).view(rows, -1, self.head_dim)
            return packed[:, : self.num_rotated], packed[:, self.first_value :]
        if self.k is None:
            queries = self.q(x).view(rows, -1, self.head_dim)
            return queries, queries[:, self.first_value :]
        rotated = torch.cat((self.q(x), self.k(x)), -1).view(rows, -1, self.head_dim)
        if self.v is None:
            return rotated, rotated[:, self.first_value :]
        return rotated, self.v(x).view(rows, -1, self.head_dim)
