"""The parts of a `gemma4_text` configuration that other families don't have.

The names and what follows from each are those of transformers' `Gemma4TextConfig` (5.17 to 5.22).
"""

from typing import Any


def refuse_gemma4_parts(raw: dict[str, Any]) -> None:
    """Raise ValueError for what a `gemma4_text` configuration may ask and no code here does."""
    refused = {
        "enable_moe_block": raw.get("enable_moe_block"),
        "rope_parameters": not raw.get("rope_parameters"),
        "attention_bias": raw.get("attention_bias"),
        "use_bidirectional_attention": raw.get("use_bidirectional_attention") == "all",
        "hidden_activation": raw.get("hidden_activation", "gelu_pytorch_tanh")
        != "gelu_pytorch_tanh",
        # Ids beyond the table would have no embedding to gather.
        "vocab_size_per_layer_input": raw.get("hidden_size_per_layer_input")
        and raw.get("vocab_size_per_layer_input", raw["vocab_size"]) < raw["vocab_size"],
    }
    for name, found in refused.items():
        if found:
            raise ValueError(f"config.json: this engine has no code for {name}={raw.get(name)!r}")


def layer_overrides(raw: dict[str, Any], kinds: list[str]) -> list[dict[str, int]]:
    """Return what differs from the model's sizes in each layer of a Gemma 4."""
    if (given := raw.get("per_layer_config")) is not None:
        # Indices come with leading zeros where there are ten layers or more.
        named = {int(key) if key.isdigit() else key: sizes for key, sizes in given.items()}
        overrides = [dict(named.get(i) or named.get(kind) or {}) for i, kind in enumerate(kinds)]
    else:
        wide = {"head_dim": raw.get("global_head_dim") or 512}
        if raw.get("attention_k_eq_v") and raw.get("num_global_key_value_heads"):
            wide["num_key_value_heads"] = raw["num_global_key_value_heads"]
        overrides = [wide if kind == "full_attention" else {} for kind in kinds]
    unknown = sorted({name for o in overrides for name in o} - {"head_dim", "num_key_value_heads"})
    if unknown:
        raise ValueError(f"config.json: this engine has no code for {unknown[0]} of single layers")
    return overrides


def kv_sources(kinds: list[str], num_shared: int) -> tuple[int | None, ...]:
    """Return for each of the last `num_shared` layers the last earlier one of its own kind."""
    first = len(kinds) - num_shared
    last = {kind: index for index, kind in enumerate(kinds[:first])}
    lonely = [kind for kind in kinds[first:] if kind not in last]
    if lonely:
        raise ValueError(f"config.json: no layer has keys and values for {lonely[0]} to share")
    return tuple(last[kind] if i >= first else None for i, kind in enumerate(kinds))
