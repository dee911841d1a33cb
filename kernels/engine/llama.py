"""One decoder layer of the Llama family (Touvron et al. 2023, arXiv:2302.13971)."""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .checkpoint import Checkpoint
from .config import ModelConfig
from .levers import Levers
from .linear import make_linear
from .mlp import GatedMLP
from .norm import make_norm
from .projections import QKV
from .rope import rotate


class LlamaLayer:
    """Pre-norm attention and SwiGLU, in the two halves that lie around the cache."""

    def __init__(self, ckpt: Checkpoint, index: int, config: ModelConfig, levers: Levers) -> None:
        prefix = f"model.layers.{index}"
        attention = f"{prefix}.self_attn"
        self.input_norm = make_norm(ckpt, f"{prefix}.input_layernorm", config, levers)
        self.mlp_norm = make_norm(ckpt, f"{prefix}.post_attention_layernorm", config, levers)
        self.qkv = QKV(ckpt, attention, index, config, levers)
        self.out = make_linear(
            ckpt.take(f"{attention}.o_proj.weight"),
            levers.weights,
            ckpt.take_if_present(f"{attention}.o_proj.bias"),
        )
        self.mlp = GatedMLP(ckpt, f"{prefix}.mlp", levers, F.silu)

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated queries and keys, and values, of x [rows, hidden]."""
        queries_keys, values = self.qkv(self.input_norm(x))
        return rotate(queries_keys, cos, sin), values

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention's and the feed-forward layer's contributions to x."""
        x = x + self.out(attended)
        return x + self.mlp(self.mlp_norm(x))
