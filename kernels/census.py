"""Byte census: what one decoded token makes the machine read.

Single-stream decoding reads every multiplied weight once per token, so bytes per token over memory
bandwidth is a floor under its time (the roofline of Williams et al. 2009). The census counts from
the checkpoint's sizes and the lever settings alone; nothing has to run. Rows that are gathered (the
token's embedding, Gemma 4's per-layer ones) are kilobytes and left out.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

_BYTES = {"float32": 4.0, "bfloat16": 2.0}
_WORDS = {"all": 1.0, "half": 0.5, "quarter": 0.25}


class Matrix(NamedTuple):
    """`copies` matrices of one size, part of the component `name`."""

    name: str
    outputs: int
    inputs: int
    copies: int


@dataclass(frozen=True)
class LayerShape:
    """One layer's sizes.

    Attributes:
        window: how many positions it attends to at most; None for all.
        shares_cache: whether it reads an earlier layer's keys and values, and projects none.
        values_are_keys: whether its key matrix is its value matrix.
    """

    head_dim: int
    num_kv_heads: int
    intermediate_size: int
    window: int | None = None
    shares_cache: bool = False
    values_are_keys: bool = False

    @property
    def cached(self) -> int:
        """Numbers in the cache per position."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide how many bytes a token costs.

    `layers` is given where they differ from each other, or have windows; `per_layer_size` is that
    of Gemma 4's per-layer embeddings.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    family: str = ""
    layers: tuple[LayerShape, ...] = ()
    per_layer_size: int = 0
    drafter: str = ""  # "model" or "assistant", if one lies beside it
    num_projected: int = 0  # layers that have an embedding of their own; 0: all

    @property
    def num_skippable(self) -> int:
        """How many layers an engine may leave out."""
        return len(self._skippable)

    @cached_property
    def _skippable(self) -> list[int]:
        """As `engine/lossy.py` has it: not the ends, nor a layer whose cache others read."""
        layers = self.every_layer
        first = next((i for i, layer in enumerate(layers) if layer.shares_cache), len(layers))
        kinds = {layer.window is None: i for i, layer in enumerate(layers[:first])}
        read = set(kinds.values()) if first < len(layers) else set()
        return [i for i in range(1, len(layers) - 1) if i not in read]

    def without(self, num_layers: int, window: int | None) -> "ModelShape":
        """Return the sizes with some layers left out, and no window wider than this one."""
        gone = set(self._skippable[-num_layers:]) if num_layers else set()
        layers = [layer for i, layer in enumerate(self.every_layer) if i not in gone]
        if window is not None:
            layers = [replace(e, window=min(e.window or window, window)) for e in layers]
        projected = self.num_projected or self.num_layers  # in one matrix, whatever is left out
        return replace(self, num_layers=len(layers), layers=tuple(layers), num_projected=projected)

    @cached_property
    def every_layer(self) -> tuple[LayerShape, ...]:
        """Return each layer's sizes."""
        alike = LayerShape(self.head_dim, self.num_kv_heads, self.intermediate_size)
        return self.layers or (alike,) * self.num_layers

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """Return the matrices that every token is multiplied by, the head left out."""
        hidden, size = self.hidden_size, self.per_layer_size
        found: Counter[tuple[str, int, int]] = Counter()
        for layer in self.every_layer:
            queries, keys = self.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
            projected = 0 if layer.shares_cache else keys if layer.values_are_keys else 2 * keys
            found["qkv", queries + projected, hidden] += 1
            found["attention-out", hidden, queries] += 1
            found["gate-up", 2 * layer.intermediate_size, hidden] += 1
            found["down", hidden, layer.intermediate_size] += 1
        if size:
            found["per-layer", size, hidden] += self.num_layers
            found["per-layer", hidden, size] += self.num_layers
            found["per-layer", (self.num_projected or self.num_layers) * size, hidden] += 1
        return tuple(Matrix(*key, copies) for key, copies in found.items())


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
        layers=_gemma4_layers(raw) if raw["model_type"] == "gemma4_text" else (),
        per_layer_size=raw.get("hidden_size_per_layer_input") or 0,
        drafter=_drafter(model_dir / "drafter"),
    )


def _drafter(folder: Path) -> str:
    config = folder / "config.json"
    if not config.is_file():
        return ""
    kind = json.loads(config.read_text())["model_type"]
    return "assistant" if kind == "gemma4_assistant" else "model"


def _gemma4_layers(raw: dict[str, Any]) -> tuple[LayerShape, ...]:
    """Return the layers of a `gemma4_text` configuration, of either spelling."""
    k_eq_v = bool(raw.get("attention_k_eq_v"))
    wide = {"head_dim": raw.get("global_head_dim") or 512}
    if k_eq_v and raw.get("num_global_key_value_heads"):
        wide["num_key_value_heads"] = raw["num_global_key_value_heads"]
    given = raw.get("per_layer_config")
    named = {int(index): sizes for index, sizes in (given or {}).items()}
    first_shared = raw["num_hidden_layers"] - (raw.get("num_kv_shared_layers") or 0)
    layers = []
    for index, kind in enumerate(raw["layer_types"]):
        everywhere, shared = kind == "full_attention", index >= first_shared
        own = named.get(index, {}) if given is not None else wide if everywhere else {}
        double = shared and raw.get("use_double_wide_mlp")
        layers.append(
            LayerShape(
                head_dim=own.get("head_dim", raw["head_dim"]),
                num_kv_heads=own.get("num_key_value_heads", raw["num_key_value_heads"]),
                intermediate_size=raw["intermediate_size"] * (2 if double else 1),
                window=None if everywhere else raw["sliding_window"],
                shares_cache=shared,
                values_are_keys=k_eq_v and everywhere,
            )
        )
    return tuple(layers)


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
    skipped, window = settings.get("skip", "none"), settings.get("window", "model")
    if (skipped, window) != ("none", "model"):
        shape = shape.without(
            0 if skipped == "none" else int(skipped), None if window == "model" else int(window)
        )
    dtype = settings.get("dtype", "bfloat16")
    weights, head = settings.get("weights", "dense"), settings.get("head", "dense")
    census: dict[str, float] = {}
    for name, outputs, inputs, copies in shape.matrices:
        read = copies * matrix_bytes(outputs, inputs, weights, dtype)
        census[name] = census.get(name, 0.0) + read
    words = int(shape.vocab_size * _WORDS[settings.get("vocab", "all")])
    census["head"] = matrix_bytes(words, shape.hidden_size, head, dtype)
    # Every layer reads the keys and values that it sees, also where an earlier layer holds them.
    numbers = sum(e.cached * min(context, e.window or context) for e in shape.every_layer)
    eager = settings.get("step", "eager") == "eager"
    kind, size = settings.get("cache", "growing"), float(_BYTES[dtype])
    if settings.get("kv") == "int8":  # codes, and of each vector of them a float32 scale
        size = 1 + 4 / shape.every_layer[0].head_dim
        if eager:  # made into numbers that are written and read again
            size += 2 * _BYTES[dtype]
    if kind == "growing" or (kind == "paged" and eager):  # each step puts all of it together again
        numbers += 2 * context * sum(e.cached for e in shape.every_layer if not e.shares_cache)
    census["kv-cache"] = numbers * size
    return census
