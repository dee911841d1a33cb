"""One decoder layer of Gemma 4 (transformers' `Gemma4TextDecoderLayer` is the specification).

Beyond Gemma 3: norm weights are plain factors and not offsets from one; values are normalised,
too, without a weight; scores are not scaled; the last layers read the keys and values of earlier
ones; each layer adds a gated embedding of its own (`per_layer.py`) and is scaled as a whole.
"""

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .config import ModelConfig
from .levers import Levers
from .linear import make_linear
from .mlp import GatedMLP, gelu_tanh
from .norm import RMSNorm, make_norm
from .per_layer import PerLayerGate
from .projections import QKV
from .rope import rotate


class Gemma4Layer:
    """Sandwich-norm attention, GeGLU and per-layer gate, in the halves around the cache."""

    def __init__(self, ckpt: Checkpoint, index: int, config: ModelConfig, levers: Levers) -> None:
        prefix = f"model.layers.{index}"
        attention = f"{prefix}.self_attn"

        def norm(name: str) -> RMSNorm:
            return make_norm(ckpt, f"{prefix}.{name}", config, levers)

        self.input_norm = norm("input_layernorm")
        self.attention_norm = norm("post_attention_layernorm")
        self.mlp_norm = norm("pre_feedforward_layernorm")
        self.output_norm = norm("post_feedforward_layernorm")
        self.query_norm = norm("self_attn.q_norm")
        self.qkv = QKV(ckpt, attention, index, config, levers)
        self.shared = self.qkv.shared
        if not self.shared:
            self.key_norm = norm("self_attn.k_norm")
            ones = torch.ones_like(self.key_norm.weight)
            self.value_norm = RMSNorm(
                ones, config.norm_eps, offset=0.0, by_layer_norm=levers.norm == "layer-norm"
            )
            self.heads = [config.num_heads, config.kv_heads[index]]
        self.out = make_linear(ckpt.take(f"{attention}.o_proj.weight"), levers.weights)
        self.mlp = GatedMLP(ckpt, f"{prefix}.mlp", levers, gelu_tanh)
        self.gate = PerLayerGate(ckpt, prefix, config, levers) if config.per_layer_size else None
        self.scalar = ckpt.take(f"{prefix}.layer_scalar")  # [1]

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated queries and keys, and values, of x [rows, hidden].

        A layer that reads another's cache returns queries only, and no values.
        """
        queries_keys, values = self.qkv(self.input_norm(x))
        if self.shared:
            return rotate(self.query_norm(queries_keys), cos, sin), values
        queries, keys = torch.split(queries_keys, self.heads, 1)
        queries_keys = torch.cat((self.query_norm(queries), self.key_norm(keys)), 1)
        return rotate(queries_keys, cos, sin), self.value_norm(values)

    def after_attention(
        self, x: Tensor, attended: Tensor, per_layer: Tensor | None = None
    ) -> Tensor:
        """Add what attention, feed-forward layer and gate contribute to x; scale the sum.

        `per_layer` [rows, per_layer_size] is this layer's own input.
        """
        x = x + self.attention_norm(self.out(attended))
        x = x + self.output_norm(self.mlp(self.mlp_norm(x)))
        if self.gate is not None and per_layer is not None:
            x = x + self.gate(x, per_layer)
        return x * self.scalar
