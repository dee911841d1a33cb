"""The catalogue of levers: what each does, what hardware it needs, what it saves, what it risks.

The engine knows how to pull a lever (`engine/levers.py`); this file knows when that may pay. The
planner reads it, the coder validates against it, and nothing here runs inside a variant.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from .census import ModelShape, bytes_per_token


class Risk(StrEnum):
    """What a lever can do to quality."""

    NONE = "none"  # the same arithmetic, up to rounding order
    ROUNDING = "rounding"  # fewer bits; the quality gate decides
    LOSSY = "lossy"  # computes less than the model: for the challenge tier
    SPECULATIVE = "speculative"  # verified, so lossless; may cost time when guesses are wrong


@dataclass(frozen=True)
class Machine:
    """What a lever may ask about the machine."""

    device: str  # "cpu" or "cuda"
    num_cores: int
    has_compiler: bool


@dataclass(frozen=True)
class Lever:
    """One named optimisation.

    Attributes:
        values: what it can be set to; the first is the seed's.
        ops_saved: operations per layer and token that the value removes, for the time arithmetic
            of levers that move no bytes.
        needs: hardware or software that it needs, for people.
    """

    name: str
    values: tuple[str, ...]
    summary: str
    risk: Risk
    needs: str = "any CPU"
    ops_saved: tuple[float, ...] = ()
    tokens_per_step: tuple[float, ...] = ()
    load_s: float = 0.0

    @property
    def default(self) -> str:
        """The seed engine's value."""
        return self.values[0]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {value: index for index, value in enumerate(self.values)}

    def ops_removed(self, value: str) -> float:
        """Return operations per layer that `value` removes compared with the seed."""
        return self.ops_saved[self._positions[value]] if self.ops_saved else 0.0

    def expected_tokens(self, value: str) -> float:
        """Return tokens expected from one pass over the weights."""
        return self.tokens_per_step[self._positions[value]] if self.tokens_per_step else 1.0

    def bytes_left(self, shape: ModelShape, settings: dict[str, str], value: str) -> float:
        """Return the bytes per token that remain when `settings` take this lever's `value`."""
        return sum(bytes_per_token(shape, {**settings, self.name: value}).values())

    def refusal(self, shape: ModelShape, value: str, machine: Machine) -> str | None:
        """Return why `value` can't work on this model and machine, or None."""
        if value not in self._positions:
            return f"{self.name}={value}: not one of {', '.join(self.values)}"
        if self.name == "threads" and value != "all" and int(value) > machine.num_cores:
            return f"threads={value}: this machine has {machine.num_cores} cores"
        kind = value.partition("-")[0]
        if self.name == "draft" and kind in ("model", "assistant") and shape.drafter != kind:
            return f"draft={value}: the challenge names no such drafter"
        if self.name == "skip" and value != self.default and int(value) > shape.num_skippable:
            return f"skip={value}: only {shape.num_skippable} layers can be left out"
        if self.name in ("compile", "step") and value != self.default and not machine.has_compiler:
            what = "nvcc (the CUDA toolkit)" if machine.device == "cuda" else "apt-get install g++"
            return f"{self.name}={value}: needs a compiler ({what})"
        if self.name == "kv" and value != self.default and machine.device == "cpu":
            return f"kv={value}: on GPUs only; a CPU's native step has no code for it"
        if self.name == "cache" and value == "paged" and machine.device == "cpu":
            return "cache=paged: on GPUs only; a CPU's native step has no code for it"
        if self.name == "activations" and value != self.default and machine.device != "cpu":
            return f"{self.name}={value}: on CPUs only"
        if value.startswith("int4-g"):
            group = int(value.removeprefix("int4-g"))
            widths = [("head", shape.hidden_size)]
            if self.name == "weights":
                widths = [(matrix.name, matrix.inputs) for matrix in shape.matrices]
            for name, inputs in widths:
                if inputs % group:
                    return f"{self.name}={value}: {group} does not divide {name}'s {inputs} columns"
        return None


_QUANTISED_CPU = "any CPU; fast with AVX2 or AVX-512"

CATALOGUE: dict[str, Lever] = {
    lever.name: lever
    for lever in (
        Lever(
            "weights",
            ("dense", "int8", "int4-g32", "int4-g64", "int4-g128", "int4-g256"),
            "hold the layers' matrices in int8 (per row) or int4 (per group of columns)",
            Risk.ROUNDING,
            needs=_QUANTISED_CPU,
        ),
        Lever(
            "head",
            ("dense", "int8", "int4-g32", "int4-g64", "int4-g128"),
            "hold the output head apart from the embedding, quantised",
            Risk.ROUNDING,
            needs=_QUANTISED_CPU,
        ),
        Lever(
            "attention",
            ("repeated", "grouped"),
            "read each key/value head once for all query heads that share it",
            Risk.NONE,
            ops_saved=(0.0, 6.0),
        ),
        Lever(
            "norm",
            ("rms-norm", "layer-norm"),
            "compute the RMS norm as half of a layer norm, which is one operation instead of eight",
            Risk.NONE,
            ops_saved=(0.0, 4.0),
        ),
        Lever(
            "fuse",
            ("none", "qkv", "qkv+gate-up"),
            "multiply query, key and value (and gate and up) as one matrix",
            Risk.NONE,
            ops_saved=(0.0, 2.0, 3.0),
        ),
        Lever(
            "cache",
            ("growing", "static", "paged"),
            "write into a key/value cache laid out beforehand instead of copying it, or, in fused "
            "steps, into pages that come as the sequence grows",
            Risk.NONE,
            needs="any CPU; paged: a GPU",
        ),
        Lever(
            "kv",
            ("dense", "int8"),
            "hold cached keys and values in int8, with a scale for each vector",
            Risk.ROUNDING,
            needs="a GPU; saves bytes in fused steps only",
        ),
        Lever(
            "step",
            ("eager", "native", "graph"),
            "compute the whole step in fused kernels: one compiled call on a CPU; on a GPU launch "
            "by launch, or replayed as one CUDA graph",
            Risk.NONE,
            needs="bfloat16; a C++ compiler (fast with AVX-512), or a GPU with nvcc",
            ops_saved=(0.0, 45.0, 50.0),
            load_s=3.0,
        ),
        Lever(
            "activations",
            ("bfloat16", "int8"),
            "round what quantised matrices are multiplied with to int8, for integer arithmetic",
            Risk.ROUNDING,
            needs="a CPU and step=native; fast with AVX-512 VNNI",
            ops_saved=(0.0, 1.0),
        ),
        Lever(
            "compile",
            ("off", "layer"),
            "fuse the small operations of a layer with torch.compile",
            Risk.NONE,
            needs="a C++ compiler",
            ops_saved=(0.0, 6.0),
            load_s=30.0,
        ),
        Lever(
            "draft",
            (
                *("off", "lookup-2", "lookup-4", "lookup-7", "lookup-adaptive"),
                *("model-4", "model-adaptive", "assistant-4", "assistant-adaptive"),
            ),
            "guess tokens (from earlier text, by a smaller model, by Gemma 4's assistant) and "
            "verify them in one pass",
            Risk.SPECULATIVE,
            needs="any CPU; model and assistant: the challenge's drafter",
            tokens_per_step=(1.0, 1.05, 1.08, 1.08, 1.1, 1.5, 1.5, 2.0, 2.0),
        ),
        Lever(
            "vocab",
            ("all", "half", "quarter"),
            "score only the words with the lowest ids, which a tokenizer's merges made first",
            Risk.LOSSY,
        ),
        Lever(
            "window",
            ("model", "1024", "512", "256", "128"),
            "let every layer see only so many of the latest positions",
            Risk.LOSSY,
        ),
        Lever(
            "skip",
            ("none", "1", "2", "4", "8"),
            "leave so many layers out, from the back, but for the last",
            Risk.LOSSY,
        ),
        Lever(
            "threads",
            ("all", "1", "2", "4", "8", "16"),
            "how many cores share one operation",
            Risk.NONE,
        ),
        Lever(
            "dtype",
            ("bfloat16", "float32"),
            "number format of activations and of dense weights",
            Risk.NONE,
        ),
    )
}

SEED_SETTINGS: dict[str, str] = {lever.name: lever.default for lever in CATALOGUE.values()}
