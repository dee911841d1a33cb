"""The settings of this variant: which value each lever has.

`levers.json` at the root of a variant's tree holds these names; a missing one means the seed's
value. The catalogue that says what each lever costs and needs lives outside, in
`slipstream/kernels/levers.py`: an engine knows how to pull a lever, not when.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("bfloat16", "float32"),
    "threads": ("all", "1", "2", "4", "8", "16"),
    "cache": ("growing", "static", "paged"),
    "kv": ("dense", "int8"),
    "attention": ("repeated", "grouped"),
    "norm": ("rms-norm", "layer-norm"),
    "fuse": ("none", "qkv", "qkv+gate-up"),
    "weights": ("dense", "int8", "int4-g32", "int4-g64", "int4-g128", "int4-g256"),
    "head": ("dense", "int8", "int4-g32", "int4-g64", "int4-g128"),
    "step": ("eager", "native", "graph"),
    "activations": ("bfloat16", "int8"),
    "compile": ("off", "layer"),
    "draft": (
        "off",
        *("lookup-2", "lookup-4", "lookup-7", "lookup-adaptive"),
        *("model-4", "model-adaptive", "assistant-4", "assistant-adaptive"),
    ),
    "vocab": ("all", "half", "quarter"),
    "window": ("model", "1024", "512", "256", "128"),
    "skip": ("none", "1", "2", "4", "8"),
}


@dataclass(frozen=True)
class Levers:
    """One value per lever; the defaults are the seed engine."""

    dtype: str = "bfloat16"
    threads: str = "all"
    cache: str = "growing"
    kv: str = "dense"
    attention: str = "repeated"
    norm: str = "rms-norm"
    fuse: str = "none"
    weights: str = "dense"
    head: str = "dense"
    step: str = "eager"
    activations: str = "bfloat16"
    compile: str = "off"
    draft: str = "off"
    vocab: str = "all"
    window: str = "model"
    skip: str = "none"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in CHOICES[field.name]:
                valid = ", ".join(CHOICES[field.name])
                raise ValueError(f"lever {field.name}: {value!r} is not one of {valid}")


def read_levers(path: Path) -> Levers:
    """Read `levers.json`.

    Raises:
        ValueError: a lever or a value that this engine doesn't have.
    """
    settings = json.loads(path.read_text()) if path.exists() else {}
    unknown = sorted(set(settings) - set(CHOICES))
    if unknown:
        raise ValueError(f"lever {unknown[0]!r} is not one of {', '.join(CHOICES)}")
    return Levers(**settings)
