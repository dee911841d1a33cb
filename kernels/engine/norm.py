"""Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467), computed in two ways."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .checkpoint import Checkpoint
from .config import ModelConfig
from .levers import Levers


class RMSNorm:
    """Normalise the last axis of x [..., size] and scale by a learned weight [size].

    Gemma 3 stores its scale as an offset from one, Gemma 4 doesn't. transformers multiplies their
    scale in float32 and Llama's after rounding to x's dtype; adding the one here, once, keeps all
    in one kernel.

    On a CPU `rms_norm` is eight small operations, `layer_norm` a single one. The vector (x, -x) has
    mean zero and x's mean square as its variance, so the first half of its layer norm is x's RMS
    norm: half the time, the same numbers.
    """

    def __init__(self, weight: Tensor, eps: float, *, offset: float, by_layer_norm: bool) -> None:
        self.weight = (weight.float() + offset).to(weight.dtype)
        self.eps = eps
        self.by_layer_norm = by_layer_norm
        if by_layer_norm:
            self.doubled = torch.cat((self.weight, self.weight))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the normalised x, same shape and dtype."""
        size = self.weight.shape[0]
        if not self.by_layer_norm:
            return torch.rms_norm(x, (size,), self.weight, self.eps)
        mirrored = torch.cat((x, -x), -1)
        normed = F.layer_norm(mirrored, (2 * size,), self.doubled, None, self.eps)
        return normed.narrow(-1, 0, size).contiguous()


def make_norm(ckpt: Checkpoint, name: str, config: ModelConfig, levers: Levers) -> RMSNorm:
    """Build the norm whose weight is the checkpoint's `name.weight`."""
    return RMSNorm(
        ckpt.take(f"{name}.weight"),
        config.norm_eps,
        offset=1.0 if config.family == "gemma3" else 0.0,
        by_layer_norm=levers.norm == "layer-norm",
    )
