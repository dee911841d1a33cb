"""What a step begins with: the tokens' embeddings, and each layer's own part of them."""

import triton
from triton import language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def embed(
    tokens, table, scale, residual, halves,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (m, block): residual [M, HIDDEN] float32 and halves [M, HIDDEN] bfloat16.

    Both are the table's row times `scale`, rounded to bfloat16 as transformers rounds it.
    """
    if DEPENDENT:  # in this order: whoever begins later may read what earlier steps wrote
        gdc_wait()
        gdc_launch_dependents()
    m = tl.program_id(0)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < HIDDEN
    token = tl.load(tokens + m).to(tl.int64)
    row = tl.load(table + token * HIDDEN + col, mask=inside, other=0.0).to(tl.float32)
    scaled = (row * scale).to(tl.bfloat16)
    tl.store(residual + m * HIDDEN + col, scaled.to(tl.float32), mask=inside)
    tl.store(halves + m * HIDDEN + col, scaled, mask=inside)


@triton.jit
def per_layer_inputs(
    tokens, table, projected, weight, out, table_scale, projection_scale, eps,
    LAYERS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Program (m, layer): out [M, LAYERS · SIZE] float32.

    (norm(projected · projection_scale) · weight + table's row · table_scale) / √2, with
    projected [M, LAYERS · SIZE] float32.
    """
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    m, layer = tl.program_id(0), tl.program_id(1)
    col = tl.arange(0, BLOCK)
    inside = col < SIZE
    at = layer * SIZE + col
    x = tl.load(projected + m * (LAYERS * SIZE) + at, mask=inside, other=0.0) * projection_scale
    x = x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
    x = x * tl.load(weight + col, mask=inside, other=0.0)
    token = tl.load(tokens + m).to(tl.int64)
    own = tl.load(table + token * (LAYERS * SIZE) + at, mask=inside, other=0.0).to(tl.float32)
    both = (x + own * table_scale) * 0.7071067811865476
    tl.store(out + m * (LAYERS * SIZE) + at, both, mask=inside)
