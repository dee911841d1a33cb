"""The seed engine: prompt token ids in, output token ids out, in plain PyTorch,
or in fused kernels.

This package is what gets mutated. It depends on torch and safetensors only and imports nothing
else of slipstream, so that a variant is this folder plus `levers.json` and runs anywhere. One idea
a file:

    config.py    what the checkpoint is            levers.py   what was chosen
    gemma4_config.py  what only Gemma 4 has        linear.py   dense, int8 and int4 matrices
    checkpoint.py  tensors by name                 shapes.py   names and shapes of random ones
    quantise.py  rounding weights                  sequence.py what may be appended
    norm.py  rope.py  mlp.py  attention.py  cache.py  projections.py
    llama.py  gemma3.py  gemma4.py                 one decoder layer of each family
    per_layer.py   an embedding for each layer
    model.py     embeddings → layers → head        lossy.py    computing less than that
    draft.py     who guesses tokens                assistant.py  Gemma 4's own drafter
    packing.py  native.py                          the whole decoder in C++, one call a step:
    step.cpp  gemv.h  mix.h  team.h  compiled.py   layers, matrices, attention, threads, the build
    gpu/         the whole step on a GPU
    engine.py    the two doors: `generate`, and `begin`/`reveal`
"""

from .engine import Engine, load

__all__ = ["Engine", "load"]
