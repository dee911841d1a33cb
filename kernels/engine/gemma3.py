"""One decoder layer of Gemma 3 (Gemma team 2025, arXiv:2503.19786).

Beyond Llama: norms before *and* after each half, normalised queries and keys, GeGLU.
"""

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .config import ModelConfig
from .levers import Levers
from .linear import make_linear
from .mlp import GatedMLP, gelu_tanh
from .norm import RMSNorm, make_norm
from .projections import QKV
from .rope import rotate


class Gemma3Layer:
    """Sandwich-norm attention and GeGLU, in the two halves that lie around the cache."""

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
        self.key_norm = norm("self_attn.k_norm")
        self.heads = [config.num_heads, config.num_kv_heads]
        self.qkv = QKV(ckpt, attention, index, config, levers)
        self.out = make_linear(ckpt.take(f"{attention}.o_proj.weight"), levers.weights)
        self.mlp = GatedMLP(ckpt, f"{prefix}.mlp", levers, gelu_tanh)

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated queries and keys, and values, of x [rows, hidden]."""
        queries_keys, values = self.qkv(self.input_norm(x))
        queries, keys = torch.split(queries_keys, self.heads, 1)
        queries_keys = torch.cat((self.query_norm(queries), self.key_norm(keys)), 1)
        return rotate(queries_keys, cos, sin), values

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention's and the feed-forward layer's contributions to x."""
        x = x + self.attention_norm(self.out(attended))
        return x + self.output_norm(self.mlp(self.mlp_norm(x)))
