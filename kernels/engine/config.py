"""What the checkpoint is: sizes and the few facts in which decoder families differ.

Reads the `config.json` of a Hugging Face checkpoint; of a multimodal one, the text decoder's part.
Both spellings of rotary settings are understood: `rope_theta` with `rope_scaling` (transformers 4),
`rope_parameters` (transformers 5).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gemma4_config import kv_sources, layer_overrides, refuse_gemma4_parts

_FAMILIES = {
    "llama": "llama",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "gemma4": "gemma4",
    "gemma4_assistant": "gemma4",
}
_ANOTHER_MODEL = -1  # whose keys and values an assistant reads


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one layer kind.

    Attributes:
        factor: divides the frequencies (linear scaling).
        num_angles: how many of the head_dim / 2 pairs turn; the others stand still.
    """

    theta: float
    head_dim: int
    num_angles: int
    factor: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a decoder. Tuples hold one entry per layer.

    Attributes:
        windows: how many positions a query sees, itself included; None where it sees all.
        kv_sources: the earlier layer whose keys and values a layer reads; None where it has its
            own, -1 where they are another model's.
        values_are_keys: whether a layer's key projection is its value projection, too.
        per_layer_size: size of the embedding that each layer gets of each token; 0 without.
        logit_cap: logits are squeezed between minus and plus this; None without.
        pad_token: whose per-layer embedding stands in for that of what isn't a token.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    norm_eps: float
    max_positions: int
    tied_head: bool
    attention_scale: float
    intermediate_sizes: tuple[int, ...]
    kv_heads: tuple[int, ...]
    head_dims: tuple[int, ...]
    windows: tuple[int | None, ...]
    ropes: tuple[Rope, ...]
    kv_sources: tuple[int | None, ...]
    values_are_keys: tuple[bool, ...]
    per_layer_size: int = 0
    logit_cap: float | None = None
    pad_token: int = 0

    @property
    def intermediate_size(self) -> int:
        """The feed-forward size of every layer."""
        return _same("intermediate_sizes", self.intermediate_sizes)

    @property
    def num_kv_heads(self) -> int:
        """The number of key/value heads of every layer."""
        return _same("kv_heads", self.kv_heads)

    @property
    def head_dim(self) -> int:
        """The head size of every layer."""
        return _same("head_dims", self.head_dims)


def read_config(model_dir: Path) -> ModelConfig:
    """Read the checkpoint's `config.json`.

    Raises:
        ValueError: a family, or a part of one, that this engine has no code for.
    """
    whole: dict[str, Any] = json.loads((model_dir / "config.json").read_text())
    family = _FAMILIES.get(whole["model_type"])
    if family is None:
        raise ValueError(
            f"model_type {whole['model_type']!r}: this engine decodes {', '.join(_FAMILIES)}"
        )
    raw: dict[str, Any] = whole.get("text_config") or whole
    num_layers, num_heads = raw["num_hidden_layers"], raw["num_attention_heads"]
    kinds = _layer_kinds(raw, family)
    head_dim = raw.get("head_dim") or raw["hidden_size"] // num_heads
    kv_heads = raw.get("num_key_value_heads") or num_heads
    head_dims, all_kv_heads = (head_dim,) * num_layers, (kv_heads,) * num_layers
    sizes, sources = (raw["intermediate_size"],) * num_layers, (None,) * num_layers
    scale = 1.0 / math.sqrt(head_dim)
    if family == "gemma3":
        scale = 1.0 / math.sqrt(raw.get("query_pre_attn_scalar", head_dim))
    if family == "gemma4":
        refuse_gemma4_parts(raw)
        scale = 1.0  # queries and keys are normalised, with weights that have the scale in them
        overrides = layer_overrides(raw, kinds)
        head_dims = tuple(o.get("head_dim", head_dim) for o in overrides)
        all_kv_heads = tuple(o.get("num_key_value_heads", kv_heads) for o in overrides)
        num_shared = raw.get("num_kv_shared_layers") or 0
        sources = (
            (_ANOTHER_MODEL,) * num_layers
            if num_shared == num_layers
            else kv_sources(kinds, num_shared)
        )
        if raw.get("use_double_wide_mlp"):
            sizes = tuple(s * (1 if k is None else 2) for s, k in zip(sizes, sources, strict=True))
    k_eq_v = bool(raw.get("attention_k_eq_v"))
    return ModelConfig(
        family=family,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        num_layers=num_layers,
        num_heads=num_heads,
        norm_eps=raw["rms_norm_eps"],
        max_positions=raw["max_position_embeddings"],
        tied_head=whole.get("tie_word_embeddings", family != "llama"),
        attention_scale=scale,
        intermediate_sizes=sizes,
        kv_heads=all_kv_heads,
        head_dims=head_dims,
        windows=tuple(raw["sliding_window"] if k == "sliding_attention" else None for k in kinds),
        ropes=tuple(_rope(raw, *layer) for layer in zip(kinds, head_dims, strict=True)),
        kv_sources=sources,
        values_are_keys=tuple(k_eq_v and kind == "full_attention" for kind in kinds),
        per_layer_size=raw.get("hidden_size_per_layer_input") or 0,
        logit_cap=raw.get("final_logit_softcapping"),
        pad_token=raw.get("pad_token_id") or 0,
    )


def _same(name: str, values: tuple[int, ...]) -> int:
    if len(set(values)) > 1:
        raise ValueError(f"{name} differ between layers: {sorted(set(values))}")
    return values[0]


def _layer_kinds(raw: dict[str, Any], family: str) -> list[str]:
    num_layers: int = raw["num_hidden_layers"]
    if family == "llama":
        return ["full_attention"] * num_layers
    kinds = list(raw.get("layer_types") or ())
    if not kinds:
        pattern = raw.get("sliding_window_pattern", 6)
        sliding = [(i + 1) % pattern != 0 for i in range(num_layers)]
        kinds = ["sliding_attention" if s else "full_attention" for s in sliding]
    if family == "gemma4":
        kinds[-1] = "full_attention"  # transformers forces this one, too
    if unknown := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise ValueError(f"config.json: this engine has no code for {unknown[0]!r} layers")
    return kinds


def _rope(raw: dict[str, Any], kind: str, head_dim: int) -> Rope:
    settings = raw.get("rope_parameters") or {}
    if kind in settings:
        settings = settings[kind]
    elif not settings:
        local = kind == "sliding_attention"
        theta = raw.get("rope_local_base_freq" if local else "rope_theta", 10_000.0)
        settings = {"rope_theta": theta, **({} if local else raw.get("rope_scaling") or {})}
    scaling = settings.get("rope_type", settings.get("type", "default"))
    if scaling not in ("default", "linear", "proportional"):
        raise ValueError(f"rope_type {scaling!r}: this engine knows default, linear, proportional")
    share = settings.get("partial_rotary_factor", 1.0) if scaling == "proportional" else 1.0
    factor = float(settings.get("factor", 1.0)) if scaling != "default" else 1.0
    return Rope(float(settings["rope_theta"]), head_dim, int(share * head_dim // 2), factor)
