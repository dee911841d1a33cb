"""What the checkpoint is: sizes and the few facts in which decoder families differ.

Reads the `config.json` of a Hugging Face checkpoint. Both spellings of rotary settings are
understood: `rope_theta` with `rope_scaling` (transformers 4), `rope_parameters` (transformers 5).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one layer kind. `factor` divides the frequencies (linear scaling)."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a decoder. `windows[i]` is layer i's sliding window, None where it sees all."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    tied_head: bool
    attention_scale: float
    windows: tuple[int | None, ...]
    ropes: tuple[Rope, ...]


def read_config(model_dir: Path) -> ModelConfig:
    """Read the checkpoint's `config.json`.

    Raises:
        ValueError: a family or a rotary scaling that this engine has no decoder for.
    """
    raw: dict[str, Any] = json.loads((model_dir / "config.json").read_text())
    family = {"llama": "llama", "gemma3_text": "gemma3"}.get(raw["model_type"])
    if family is None:
        raise ValueError(
            f"model_type {raw['model_type']!r}: this engine decodes llama and gemma3_text"
        )
    num_layers = raw["num_hidden_layers"]
    head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    kinds = _layer_kinds(raw, num_layers) if family == "gemma3" else ["full_attention"] * num_layers
    scale_of = raw.get("query_pre_attn_scalar", head_dim) if family == "gemma3" else head_dim
    return ModelConfig(
        family=family,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=num_layers,
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        head_dim=head_dim,
        norm_eps=raw["rms_norm_eps"],
        max_positions=raw["max_position_embeddings"],
        tied_head=raw.get("tie_word_embeddings", family == "gemma3"),
        attention_scale=1.0 / math.sqrt(scale_of),
        windows=tuple(raw["sliding_window"] if k == "sliding_attention" else None for k in kinds),
        ropes=tuple(_rope(raw, kind) for kind in kinds),
    )


def _layer_kinds(raw: dict[str, Any], num_layers: int) -> list[str]:
    if raw.get("layer_types"):
        return list(raw["layer_types"])
    pattern = raw.get("sliding_window_pattern", 6)
    return [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention"
        for i in range(num_layers)
    ]


def _rope(raw: dict[str, Any], kind: str) -> Rope:
    settings = raw.get("rope_parameters") or {}
    if kind in settings:
        settings = settings[kind]
    elif not settings:
        local = kind == "sliding_attention"
        theta = raw.get("rope_local_base_freq" if local else "rope_theta", 10_000.0)
        settings = {"rope_theta": theta, **({} if local else raw.get("rope_scaling") or {})}
    scaling = settings.get("rope_type", settings.get("type", "default"))
    if scaling not in ("default", "linear"):
        raise ValueError(f"rope_type {scaling!r}: this engine knows default and linear")
    factor = float(settings.get("factor", 1.0)) if scaling == "linear" else 1.0
    return Rope(float(settings["rope_theta"]), factor)
