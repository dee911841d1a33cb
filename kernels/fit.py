"""Which levers go together: what does nothing beside others, and what can't work on a machine."""

from .census import ModelShape
from .levers import CATALOGUE, SEED_SETTINGS, Machine

_NATIVE_FAMILIES = {
    "cpu": ("llama", "gemma3_text"),
    "cuda": ("llama", "gemma4_text"),
}
# Of the GPU's attention kernel; query heads to a key/value head; of its norm.
_GPU_HEAD_DIMS, _GPU_GROUPS, _GPU_HIDDEN_SIZE = (64, 128, 256, 512), (1, 2, 3, 4, 8), 4096
# Columns of a matrix come in whole blocks (on a CPU) or stages (on a GPU).
_CPU_BLOCK = 32
_GPU_STAGES = {"dense": 32, "int8": 64, "int4": 128}
_EAGER_ONLY = frozenset({"attention", "norm", "fuse", "cache", "compile"})


def moot(settings: dict[str, str]) -> frozenset[str]:
    """Return the levers that do nothing beside the other settings."""
    if settings.get("step", "eager") == "eager":
        return frozenset({"activations"})
    dense = all(settings.get(name, "dense") == "dense" for name in ("weights", "head"))
    idle = {"activations"} if dense or settings["step"] == "graph" else set()
    paged = {"cache"} if settings.get("cache") == "paged" else set()
    return (_EAGER_ONLY | idle) - paged


def effective(settings: dict[str, str]) -> dict[str, str]:
    """Return a value for every lever: the seed's where a lever is missing or does nothing.

    But for the cache of the fused steps, which is what `static` is unless it is in pages.
    """
    without = moot(settings)
    found = {
        name: default if name in without else settings.get(name, default)
        for name, default in SEED_SETTINGS.items()
    }
    fused = found["step"] != "eager" and found["cache"] != "paged"
    return {**found, "cache": "static"} if fused else found


def refusal(shape: ModelShape, settings: dict[str, str], machine: Machine) -> str | None:
    """Return why these settings can't work on this model and machine, or None."""
    for name, value in settings.items():
        if name not in CATALOGUE:
            return f"lever {name!r}: not one of {', '.join(CATALOGUE)}"
        if reason := CATALOGUE[name].refusal(shape, value, machine):
            return reason
    everything = {**SEED_SETTINGS, **settings}
    if everything["step"] != "eager":
        return _native_refusal(shape, everything, machine)
    if machine.device == "cuda":
        for name in ("weights", "head"):
            if everything[name] != "dense":
                return f"{name}={everything[name]}: on a GPU only with step=native or graph"
    return None


def _native_refusal(shape: ModelShape, settings: dict[str, str], machine: Machine) -> str | None:
    step, families = settings["step"], _NATIVE_FAMILIES[machine.device]
    if step == "graph" and machine.device != "cuda":
        return "step=graph: needs a GPU"
    if settings["dtype"] != "bfloat16":
        return f"step={step}: needs dtype=bfloat16, not {settings['dtype']}"
    if shape.family not in families:
        return f"step={step}: decodes {', '.join(families)}, not {shape.family}"
    if machine.device == "cuda":
        return _gpu_refusal(shape, settings)
    sizes = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "head_dim": shape.head_dim,
    }
    for name, size in sizes.items():
        if size % _CPU_BLOCK:
            return f"step={step}: needs a {name} of a multiple of {_CPU_BLOCK}, not {size}"
    return None


def _gpu_refusal(shape: ModelShape, settings: dict[str, str]) -> str | None:
    step = settings["step"]
    if shape.hidden_size > _GPU_HIDDEN_SIZE:
        return f"step={step}: needs a hidden_size of at most {_GPU_HIDDEN_SIZE}"
    for layer in shape.every_layer:
        group = shape.num_heads // layer.num_kv_heads
        if layer.head_dim not in _GPU_HEAD_DIMS or group not in _GPU_GROUPS:
            return f"step={step}: no attention for {group} query heads of {layer.head_dim} together"
        if layer.values_are_keys:
            return f"step={step}: has no code for values that are the keys"
    widths = {("weights", matrix.name, matrix.inputs) for matrix in shape.matrices}
    for lever, name, inputs in sorted({*widths, ("head", "head", shape.hidden_size)}):
        stage = _GPU_STAGES[settings[lever].partition("-")[0]]
        if inputs % stage:
            value = f"{lever}={settings[lever]}"
            return f"step={step}: {value} needs a multiple of {stage} columns, {name} has {inputs}"
    return None
