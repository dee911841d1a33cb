"""Per-layer embeddings: a small vector of its own for each layer and token (Gemma 3n, Gemma 4).

Most of a Gemma 4 E4B's bytes are one table, 262,144 tokens × 42 layers × 256. It is gathered, one
row a token, and never multiplied, so it costs a token nothing but its room. It lies where the
checkpoint's tensors are made.
"""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .checkpoint import Checkpoint
from .config import ModelConfig
from .levers import Levers
from .linear import make_linear
from .mlp import gelu_tanh
from .norm import make_norm


class PerLayerInputs:
    """What all layers get of each token: half its own table row, half from its embedding."""

    def __init__(self, ckpt: Checkpoint, config: ModelConfig, levers: Levers) -> None:
        self.table = ckpt.take("model.embed_tokens_per_layer.weight")
        self.projection = make_linear(
            ckpt.take("model.per_layer_model_projection.weight"), levers.weights
        )
        self.norm = make_norm(ckpt, "model.per_layer_projection_norm", config, levers)
        self.size = config.per_layer_size
        self.table_scale = float(config.per_layer_size) ** 0.5
        self.projection_scale = float(config.hidden_size) ** -0.5

    def __call__(self, ids: Tensor, embedded: Tensor) -> tuple[Tensor, ...]:
        """Return one [rows, per_layer_size] for each layer.

        Args:
            ids: the tokens, [rows].
            embedded: their scaled embeddings, [rows, hidden].
        """
        rows = ids.shape[0]
        own = (F.embedding(ids, self.table) * self.table_scale).view(rows, -1, self.size)
        projected = self.projection(embedded) * self.projection_scale
        both = (self.norm(projected.view(rows, -1, self.size)) + own) * 2.0**-0.5
        return tuple(both.unbind(1))


class PerLayerGate:
    """norm(up(gelu(down(x)) · per-layer input)): what one layer adds of its own input."""

    def __init__(self, ckpt: Checkpoint, prefix: str, config: ModelConfig, levers: Levers) -> None:
        down = ckpt.take(f"{prefix}.per_layer_input_gate.weight")
        self.down = make_linear(down, levers.weights)
        self.up = make_linear(ckpt.take(f"{prefix}.per_layer_projection.weight"), levers.weights)
        self.norm = make_norm(ckpt, f"{prefix}.post_per_layer_input_norm", config, levers)

    def __call__(self, x: Tensor, per_layer: Tensor) -> Tensor:
        """Return what to add to x [rows, hidden], given per_layer [rows, per_layer_size]."""
        return self.norm(self.up(gelu_tanh(self.down(x)) * per_layer))
