/* Attention of one query over a cache that is laid out for it, as matrices are for vectors.
 *
 *   keys    [kv_heads, tiles, head_dim / 2, 16 positions, 2]   a tile's 16 scores side by side
 *   values  [kv_heads, pairs, head_dim, 2 positions]           two positions a step
 *
 * Both in bfloat16, so that one instruction multiplies two numbers for each of 16 lanes and no sum
 * across a register is needed. Positions are taken in order, whoever asks: a query's answer doesn't
 * depend on what else is decoded with it.
 */
#pragma once
#include <algorithm>
#include <limits>

#include "gemv.h"

namespace slip {

constexpr int KEYS = 16;

static inline int padded(int positions) { return (positions + KEYS - 1) / KEYS * KEYS; }

struct Cache {
    uint16_t *key, *value;
    int max_context, head_dim;

    size_t head(int kv) const { return (size_t)kv * padded(max_context) * head_dim; }

    void store(int kv, int at, const float *k, const float *v) {
        uint16_t *tile = key + head(kv) + (size_t)(at / KEYS) * KEYS * head_dim + at % KEYS * 2;
        uint16_t *pair = value + head(kv) + (size_t)(at / 2) * 2 * head_dim + at % 2;
        for (int i = 0; i < head_dim; i++) tile[i / 2 * 2 * KEYS + i % 2] = down(k[i]);
        for (int i = 0; i < head_dim; i++) pair[2 * i] = down(v[i]);
    }
};

/* e^x for x ≤ 0 or moderate x, to about one unit in the last place; vectorises. */
static inline float fast_exp(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    float whole = x * 1.44269504f + 12582912.0f; /* adding 1.5 · 2^23 rounds to an integer */
    int exponent;
    memcpy(&exponent, &whole, 4);
    whole -= 12582912.0f;
    float r = x - whole * 0.693359375f - whole * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int bits = (exponent + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

static void scores_portable(const uint16_t *tile, const uint16_t *query, int head_dim, float *out) {
    for (int t = 0; t < KEYS; t++) out[t] = 0.0f;
    for (int i = 0; i < head_dim; i++)
        for (int t = 0; t < KEYS; t++)
            out[t] += up(tile[(i / 2 * KEYS + t) * 2 + i % 2]) * up(query[i]);
}

static void values_portable(const uint16_t *pairs, const uint16_t *share, int count, int head_dim,
                            float *out) {
    for (int i = 0; i < head_dim; i++) out[i] = 0.0f;
    for (int p = 0; p < count; p++)
        for (int i = 0; i < head_dim; i++) {
            const uint16_t *two = pairs + ((size_t)p * head_dim + i) * 2;
            out[i] += up(two[0]) * up(share[2 * p]) + up(two[1]) * up(share[2 * p + 1]);
        }
}

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
static void scores_avx512(const uint16_t *tile, const uint16_t *query, int head_dim, float *out) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int i = 0; i < head_dim; i += 4) {
        const uint16_t *at = tile + (size_t)i * KEYS;
        even = _mm512_dpbf16_ps(even, (__m512bh)_mm512_loadu_si512(at), pair(query + i));
        odd = _mm512_dpbf16_ps(odd, (__m512bh)_mm512_loadu_si512(at + 2 * KEYS),
                               pair(query + i + 2));
    }
    _mm512_storeu_ps(out, _mm512_add_ps(even, odd));
}

static void values_avx512(const uint16_t *pairs, const uint16_t *share, int count, int head_dim,
                          float *out) {
    for (int first = 0; first < head_dim; first += 64) { /* a few sums at a time, in registers */
        __m512 sums[4];
        int some = std::min(4, (head_dim - first) / 16);
        for (int i = 0; i < 4; i++) sums[i] = _mm512_setzero_ps();
        for (int p = 0; p < count; p++) {
            const uint16_t *at = pairs + ((size_t)p * head_dim + first) * 2;
            __m512bh both = pair(share + 2 * p);
            for (int i = 0; i < some; i++)
                sums[i] =
                    _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_loadu_si512(at + 32 * i), both);
        }
        for (int i = 0; i < some; i++) _mm512_storeu_ps(out + first + 16 * i, sums[i]);
    }
}
#pragma GCC pop_options
#endif

/* out [head_dim] = softmax(query · keys) values over positions oldest … newest of head kv.
 * Scratch: score [padded(max_context)], share [padded(max_context) + head_dim]. */
static void mix(const Cache &cache, int path, int kv, const float *query, int oldest, int newest,
                float *score, uint16_t *share, float *out) {
    int head_dim = cache.head_dim, first = oldest / KEYS * KEYS, end = padded(newest + 1);
    uint16_t *half = share + padded(cache.max_context);
    for (int i = 0; i < head_dim; i++) half[i] = down(query[i]);
    for (int t = first; t < end; t += KEYS) {
        const uint16_t *tile = cache.key + cache.head(kv) + (size_t)t * head_dim;
#if defined(__x86_64__)
        if (path == AVX512) scores_avx512(tile, half, head_dim, score + t);
        else
#endif
            scores_portable(tile, half, head_dim, score + t);
    }
    const float never = -std::numeric_limits<float>::infinity();
    for (int t = first; t < oldest; t++) score[t] = never;
    for (int t = newest + 1; t < end; t++) score[t] = never;
    float most = never, lanes[KEYS] = {};
    for (int t = oldest; t <= newest; t++) most = std::max(most, score[t]);
    for (int t = first; t < end; t++) score[t] = fast_exp(score[t] - most);
    for (int t = first; t < oldest; t++) score[t] = 0.0f; /* fast_exp is never quite zero */
    for (int t = newest + 1; t < end; t++) score[t] = 0.0f;
    for (int t = first; t < end; t += KEYS)
        for (int j = 0; j < KEYS; j++) {
            share[t + j] = down(score[t + j]);
            lanes[j] += up(share[t + j]);
        }
    float total = 0.0f;
    for (int j = 0; j < KEYS; j++) total += lanes[j];
    const uint16_t *pairs = cache.value + cache.head(kv) + (size_t)first * head_dim;
#if defined(__x86_64__)
    if (path == AVX512) values_avx512(pairs, share + first, (end - first) / 2, head_dim, out);
    else
#endif
        values_portable(pairs, share + first, (end - first) / 2, head_dim, out);
    for (int i = 0; i < head_dim; i++) out[i] /= total;
}

}  // namespace slip
