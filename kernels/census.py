"""Byte census: what one decoded token makes the machine read.

Single-stream decoding reads every multiplied weight once per token, so bytes per token over memory
bandwidth is a floor under its time (the roofline of Williams et al. 2009). The census counts from
the checkpoint's sizes and the lever settings alone; nothing has to run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BYTES = {"float32": 4.0, "bfloat16": 2.0}


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide how many bytes a token costs."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    family: str = ""

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return each layer matrix as (outputs, inputs)."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "qkv": (queries + 2 * keys, self.hidden_size),
            "attention-out": (self.hidden_size, queries),
            "gate-up": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }


def read_shape(model_dir: Path) -> ModelShape:
    """Read the sizes from a checkpoint's `config.json`."""
    raw: dict[str, Any] = json.loads((model_dir / "config.json").read_text())
    raw = raw.get("text_config", raw)
    heads = raw["num_attention_heads"]
    return ModelShape(
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        vocab_size=raw["vocab_size"],
        family=raw["model_type"],
    )


def matrix_bytes(outputs: int, inputs: int, scheme: str, dtype: str) -> float:
    """Return the bytes of one matrix under a weight scheme (dense, int8, int4-gN)."""
    size, wide = outputs * inputs, _BYTES[dtype]
    if scheme == "dense":
        return size * wide
    if scheme == "int8":
        return size + outputs * wide  # one scale per row
    group = int(scheme.removeprefix("int4-g"))
    return size / 2 + 2 * wide * size / group  # scale and zero per group


def bytes_per_token(
    shape: ModelShape, settings: dict[str, str], *, context: int = 256
) -> dict[str, float]:
    """Return the bytes one decoded token reads, per component, with `context` cached positions."""
    dtype = settings.get("dtype", "bfloat16")
    weights, head = settings.get("weights", "dense"), settings.get("head", "dense")
    census = {
        name: shape.num_layers * matrix_bytes(outputs, inputs, weights, dtype)
        for name, (outputs, inputs) in shape.matrices.items()
    }
    census["head"] = matrix_bytes(shape.vocab_size, shape.hidden_size, head, dtype)
    cached = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * context
    # The growing cache is read for attention and also read and written again by each copy.
    copies = 3.0 if settings.get("cache", "growing") == "growing" else 1.0
    census["kv-cache"] = cached * _BYTES[dtype] * copies
    return census
