"""Decode attention with what comes before it: norms, rotation, cache write; split over positions.

Flash-decoding (Dao et al. 2023): the cached positions are cut into tiles, the tiles dealt to
programs, and whichever program of a key/value head comes last adds up what the others found. The
tile that holds the newest positions computes their keys and values from the projections and writes
them to the cache. Tiles lie at fixed positions and are dealt by number, so that a token verified
among others is bit for bit the token decoded alone.
"""

import triton
from triton import language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

TILE = 32


@triton.jit
def _normed(a, b, weight, col, HALF: tl.constexpr, eps, WEIGHTED: tl.constexpr):
    """RMS norm of rows whose halves are a and b, each [rows, HALF]."""
    scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
    if WEIGHTED:
        return (
            a * scale * tl.load(weight + col)[None, :],
            b * scale * tl.load(weight + HALF + col)[None, :],
        )
    return a * scale, b * scale


@triton.jit
def _rotated(a, b, cos, sin, at, col, HALF: tl.constexpr, mask):
    """Rotate by the angles of positions `at` [rows]."""
    where = at[:, None] * HALF + col[None, :]
    c = tl.load(cos + where, mask=mask[:, None], other=0.0)
    s = tl.load(sin + where, mask=mask[:, None], other=0.0)
    return a * c - b * s, b * c + a * s


@triton.jit
def _rows_of(
    table, at, kv, CONTEXT: tl.constexpr, PAGE: tl.constexpr, KV_HEADS: tl.constexpr, mask
):
    """Where the positions `at` of head kv lie, in rows of the cache."""
    if PAGE:
        page = tl.load(table + at // PAGE, mask=mask, other=0)
        return (page * KV_HEADS + kv) * PAGE + at % PAGE
    return kv * CONTEXT + at


@triton.jit
def _to_int8(a, b):
    """Round rows to int8 with one scale each: codes of both halves, and the scales."""
    most = tl.maximum(tl.max(tl.abs(a), 1), tl.max(tl.abs(b), 1))
    scale = tl.maximum(most / 127.0, 1e-8)
    a, b = a / scale[:, None], b / scale[:, None]
    a = tl.floor(a + 0.5).to(tl.int8)
    b = tl.floor(b + 0.5).to(tl.int8)
    return a, b, scale


@triton.jit
def decode_attention(
    qkv, cos, sin, query_norm, key_norm, key, value, key_scale, value_scale, table, position,
    out, part, most_part, total_part, arrived,
    eps, scale,
    M: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, CONTEXT: tl.constexpr,
    PAGE: tl.constexpr, SHARED: tl.constexpr, NORMS: tl.constexpr, VALUE_NORM: tl.constexpr,
    INT8: tl.constexpr, DEPENDENT: tl.constexpr, TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One program per key/value head and split.

    Args:
        qkv: [M, (GROUP · KV_HEADS + 2 · KV_HEADS) · HEAD_DIM], float32; queries only if SHARED.
        cos, sin: [CONTEXT, HEAD_DIM / 2], float32.
        key, value: [KV_HEADS, CONTEXT, HEAD_DIM], or [pages, KV_HEADS, PAGE, HEAD_DIM] found
            through `table`; bfloat16, or int8 with scales [KV_HEADS, CONTEXT].
        position: how many positions came before these M, on the device.
        out: [M, GROUP · KV_HEADS · HEAD_DIM], bfloat16.
        part: [KV_HEADS, SPLITS, ROWS, HEAD_DIM]; most_part, total_part: [KV_HEADS, SPLITS, ROWS].
        arrived: [KV_HEADS], zero before and after.
        DTYPE: of the products' operands; what is rounded is rounded to bfloat16 all the same.
        SHARED: the cache is another layer's, which has written the M newest positions already.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    HEADS: tl.constexpr = GROUP * KV_HEADS
    WIDTH: tl.constexpr = HEADS * HEAD_DIM if SHARED else (HEADS + 2 * KV_HEADS) * HEAD_DIM
    kv, split = tl.program_id(0), tl.program_id(1)
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    start = tl.load(position)
    col = tl.arange(0, HALF)
    row = tl.arange(0, ROWS)
    m, head = row // GROUP, kv * GROUP + row % GROUP
    live = row < M * GROUP
    queries = qkv + m[:, None] * WIDTH + head[:, None] * HEAD_DIM + col[None, :]
    qa = tl.load(queries, mask=live[:, None], other=0.0)
    qb = tl.load(queries + HALF, mask=live[:, None], other=0.0)
    if NORMS:
        qa, qb = _normed(qa, qb, query_norm, col, HALF, eps, True)
    qa, qb = _rotated(qa, qb, cos, sin, start + m, col, HALF, live)
    qa, qb = (qa * scale).to(tl.bfloat16).to(DTYPE), (qb * scale).to(tl.bfloat16).to(DTYPE)

    end = start + M
    oldest = start * 0
    if WINDOW:
        oldest = tl.maximum(start - WINDOW + 1, 0)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed_a = tl.zeros([ROWS, HALF], tl.float32)
    mixed_b = tl.zeros([ROWS, HALF], tl.float32)
    # Tile i belongs to split i mod SPLITS, wherever the window begins.
    first = oldest // TILE
    first += (split - first % SPLITS + SPLITS) % SPLITS
    tile = first
    while tile * TILE < end:
        at = tile * TILE + tl.arange(0, TILE)
        cached = at < end if SHARED else at < start
        rows = _rows_of(table, at, kv, CONTEXT, PAGE, KV_HEADS, cached)
        where = rows[:, None] * HEAD_DIM + col[None, :]
        ka = tl.load(key + where, mask=cached[:, None], other=0.0)
        kb = tl.load(key + where + HALF, mask=cached[:, None], other=0.0)
        va = tl.load(value + where, mask=cached[:, None], other=0.0)
        vb = tl.load(value + where + HALF, mask=cached[:, None], other=0.0)
        ks = tl.full([TILE], 1.0, tl.float32)
        vs = tl.full([TILE], 1.0, tl.float32)
        if INT8:
            ks = tl.load(key_scale + rows, mask=cached, other=1.0)
            vs = tl.load(value_scale + rows, mask=cached, other=1.0)
        if not SHARED:  # noqa: SIM102  (known when compiling; the next one is not)
            if tile * TILE + TILE > start:
                fresh = (at >= start) & (at < end)
                newest = qkv + (at - start)[:, None] * WIDTH + (HEADS + kv) * HEAD_DIM
                newest = newest + col[None, :]
                fa = tl.load(newest, mask=fresh[:, None], other=0.0)
                fb = tl.load(newest + HALF, mask=fresh[:, None], other=0.0)
                if NORMS:
                    fa, fb = _normed(fa, fb, key_norm, col, HALF, eps, True)
                fa, fb = _rotated(fa, fb, cos, sin, at, col, HALF, fresh)
                newest = newest + KV_HEADS * HEAD_DIM
                ga = tl.load(newest, mask=fresh[:, None], other=0.0)
                gb = tl.load(newest + HALF, mask=fresh[:, None], other=0.0)
                if VALUE_NORM:
                    ga, gb = _normed(ga, gb, key_norm, col, HALF, eps, False)
                rows = _rows_of(table, at, kv, CONTEXT, PAGE, KV_HEADS, fresh)
                where = rows[:, None] * HEAD_DIM + col[None, :]
                if INT8:
                    fa8, fb8, fs = _to_int8(fa, fb)
                    ga8, gb8, gs = _to_int8(ga, gb)
                    tl.store(key_scale + rows, fs, mask=fresh)
                    tl.store(value_scale + rows, gs, mask=fresh)
                    ks, vs = tl.where(fresh, fs, ks), tl.where(fresh, gs, vs)
                else:
                    fa8, fb8 = fa.to(tl.bfloat16), fb.to(tl.bfloat16)
                    ga8, gb8 = ga.to(tl.bfloat16), gb.to(tl.bfloat16)
                tl.store(key + where, fa8, mask=fresh[:, None])
                tl.store(key + where + HALF, fb8, mask=fresh[:, None])
                tl.store(value + where, ga8, mask=fresh[:, None])
                tl.store(value + where + HALF, gb8, mask=fresh[:, None])
                ka = tl.where(fresh[:, None], fa8, ka)
                kb = tl.where(fresh[:, None], fb8, kb)
                va = tl.where(fresh[:, None], ga8, va)
                vb = tl.where(fresh[:, None], gb8, vb)
        scores = tl.dot(qa, tl.trans(ka.to(DTYPE)))
        scores += tl.dot(qb, tl.trans(kb.to(DTYPE)))
        if INT8:
            scores *= ks[None, :]
        seen = (at[None, :] <= (start + m)[:, None]) & (at < end)[None, :]
        if WINDOW:
            seen = seen & (at[None, :] > (start + m)[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        top = tl.maximum(most, tl.max(scores, 1))
        base = tl.where(top == float("-inf"), 0.0, top)  # a row that sees nothing of this tile
        share = tl.exp(scores - base[:, None])
        shrink = tl.exp(most - base)
        total = total * shrink + tl.sum(share, 1)
        if INT8:
            share *= vs[None, :]
        share = share.to(tl.bfloat16).to(DTYPE)
        mixed_a = mixed_a * shrink[:, None] + tl.dot(share, va.to(DTYPE))
        mixed_b = mixed_b * shrink[:, None] + tl.dot(share, vb.to(DTYPE))
        most = top
        tile += SPLITS

    flat = (kv * SPLITS + split) * ROWS + row
    tl.store(part + flat[:, None] * HEAD_DIM + col[None, :], mixed_a)
    tl.store(part + flat[:, None] * HEAD_DIM + HALF + col[None, :], mixed_b)
    tl.store(most_part + flat, most)
    tl.store(total_part + flat, total)
    tl.debug_barrier()
    before = tl.atomic_add(arrived + kv, 1, sem="acq_rel")
    if before == SPLITS - 1:
        most = tl.full([ROWS], float("-inf"), tl.float32)
        for other in range(SPLITS):
            most = tl.maximum(most, tl.load(most_part + (kv * SPLITS + other) * ROWS + row))
        most = tl.where(most == float("-inf"), 0.0, most)
        total = tl.zeros([ROWS], tl.float32)
        mixed_a = tl.zeros([ROWS, HALF], tl.float32)
        mixed_b = tl.zeros([ROWS, HALF], tl.float32)
        for other in range(SPLITS):
            flat = (kv * SPLITS + other) * ROWS + row
            weight = tl.exp(tl.load(most_part + flat) - most)
            total += weight * tl.load(total_part + flat)
            theirs = part + flat[:, None] * HEAD_DIM + col[None, :]
            mixed_a += weight[:, None] * tl.load(theirs)
            mixed_b += weight[:, None] * tl.load(theirs + HALF)
        total = tl.where(live, total, 1.0)
        to = out + m[:, None] * (HEADS * HEAD_DIM) + head[:, None] * HEAD_DIM + col[None, :]
        tl.store(to, (mixed_a / total[:, None]).to(tl.bfloat16), mask=live[:, None])
        tl.store(to + HALF, (mixed_b / total[:, None]).to(tl.bfloat16), mask=live[:, None])
        tl.store(arrived + kv, 0)
