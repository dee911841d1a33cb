/* Packed matrices times a few vectors: y[m] = W x[m] for m < rows_in.
 *
 * Weights lie in tiles of 16 output rows, so that a 512-bit register holds one number of each row
 * and no sum across a register is ever needed. Within a tile, columns come in blocks of 32:
 *
 *   dense  16 × [16 rows × 2 bf16]                                              1024 bytes
 *   int8    8 × [16 rows × 4 bytes], each weight + 128                           512 bytes
 *   int4    4 × [16 rows × 4 bytes]; byte i of quarter j holds column 4j+i in its low half and
 *           column 16+4j+i in its high half                                      256 bytes
 *           before each group of blocks: 16 scales and 16 minima, float16         64 bytes
 *
 * A weight is scale · code + minimum (int4) or scale[row] · code (int8). Activations are either
 * bfloat16 or, per block of 32, int8 with one scale. Every output is summed in the same order
 * whatever the number of vectors, so a token verified among others is bit for bit the token decoded
 * alone.
 */
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace slip {

enum Scheme { DENSE = 0, INT8 = 1, INT4 = 2 };
enum Path { PORTABLE = 0, AVX512 = 1 };

struct Matrix {
    const uint8_t *data = nullptr;
    const float *scale = nullptr; /* int8: [tiles * 16] */
    const float *bias = nullptr;  /* [tiles * 16] or null */
    int scheme = DENSE, tiles = 0, rows = 0, blocks = 0, group = 1; /* group: in blocks */
    bool int8_inputs = false;

    size_t tile_bytes() const {
        if (scheme == INT4) return (size_t)blocks * 256 + (size_t)(blocks / group) * 64;
        return (size_t)blocks * (scheme == INT8 ? 512 : 1024);
    }
};

/* One vector, prepared for a matrix: `half` for bfloat16 inputs, `byte` and `scale` for int8 ones;
 * `sum` is the sum of each block as the kernel sees it. */
struct Inputs {
    uint16_t *half = nullptr;
    int8_t *byte = nullptr;
    float *scale = nullptr, *sum = nullptr;
};

static inline float up(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint16_t down(float value) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float from_float16(uint16_t half) {
#if defined(__x86_64__) && defined(__F16C__)
    return _cvtsh_ss(half);
#else
    _Float16 value;
    memcpy(&value, &half, 2);
    return (float)value;
#endif
}

/* Round one block of 32 to int8. Returns the scale. */
static inline float to_bytes(const float *x, int8_t *out, float *sum) {
    float most = 0.0f;
    for (int i = 0; i < 32; i++) {
        float size = x[i] < 0 ? -x[i] : x[i];
        most = size > most ? size : most;
    }
    float scale = most / 127.0f, inverse = most > 0 ? 127.0f / most : 0.0f;
    int total = 0;
    for (int i = 0; i < 32; i++) {
        float value = x[i] * inverse;
        int code = (int)(value + (value < 0 ? -0.5f : 0.5f));
        out[i] = (int8_t)code;
        total += code;
    }
    *sum = scale * (float)total;
    return scale;
}

/* Prepare blocks [first, last) of x for `matrix`. */
static void prepare(const Matrix &matrix, const float *x, const Inputs &to, int first, int last) {
    for (int b = first; b < last; b++) {
        const float *block = x + 32 * b;
        if (matrix.int8_inputs) {
            to.scale[b] = to_bytes(block, to.byte + 32 * b, to.sum + b);
            continue;
        }
        uint16_t *half = to.half + 32 * b;
        float sum = 0.0f;
        for (int i = 0; i < 32; i++) half[i] = down(block[i]);
        for (int i = 0; i < 32; i++) sum += up(half[i]);
        to.sum[b] = sum;
        if (matrix.scheme == DENSE) continue;
        for (int i = 0; i < 32; i += 4) { /* a masked quarter gives columns 0, 2 and then 1, 3 */
            uint16_t second = half[i + 1];
            half[i + 1] = half[i + 2];
            half[i + 2] = second;
        }
    }
}

/* ---- portable ---------------------------------------------------------------------------- */

static inline int code_of(const Matrix &w, const uint8_t *block, int row, int column) {
    if (w.scheme == INT8) return block[(column / 4) * 64 + row * 4 + column % 4] - 128;
    int within = column % 16;
    uint8_t byte = block[(within / 4) * 64 + row * 4 + within % 4];
    return column < 16 ? byte & 15 : byte >> 4;
}

static inline int place_of(int column) { /* where `prepare` put a column of bfloat16 inputs */
    int i = column % 4;
    return column - i + (i == 1 ? 2 : i == 2 ? 1 : i);
}

static void tile_portable(const Matrix &w, const uint8_t *at, const Inputs *x, int count,
                          float (*y)[16]) {
    for (int m = 0; m < count; m++)
        for (int r = 0; r < 16; r++) y[m][r] = 0.0f;
    for (int b = 0; b < w.blocks; b++) {
        const uint8_t *tables = at;
        if (w.scheme == INT4) {
            if (b % w.group == 0) at += 64;
            else tables = at - 256 * (b % w.group) - 64;
        }
        for (int m = 0; m < count; m++)
            for (int r = 0; r < 16; r++) {
                float sum = 0.0f;
                if (w.scheme == DENSE) {
                    const uint16_t *rows = (const uint16_t *)at;
                    for (int c = 0; c < 32; c++)
                        sum += up(rows[(c / 2) * 32 + r * 2 + c % 2]) * up(x[m].half[32 * b + c]);
                } else if (w.int8_inputs) {
                    int exact = 0;
                    for (int c = 0; c < 32; c++)
                        exact += code_of(w, at, r, c) * x[m].byte[32 * b + c];
                    sum = (float)exact * x[m].scale[b];
                } else {
                    for (int c = 0; c < 32; c++)
                        sum += (float)code_of(w, at, r, c) * up(x[m].half[32 * b + place_of(c)]);
                }
                if (w.scheme == INT4) {
                    const uint16_t *scales = (const uint16_t *)tables;
                    sum = sum * from_float16(scales[r]) +
                          x[m].sum[b] * from_float16(scales[16 + r]);
                }
                y[m][r] += sum;
            }
        at += w.scheme == DENSE ? 1024 : w.scheme == INT8 ? 512 : 256;
    }
}

/* ---- AVX-512 ------------------------------------------------------------------------------ */

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx512vbmi,f16c,fma")

static inline __m512i spread(const void *four_bytes) {
    int value;
    memcpy(&value, four_bytes, 4);
    return _mm512_set1_epi32(value);
}

static inline __m512bh pair(const uint16_t *two) { return (__m512bh)spread(two); }

template <int M>
static void tile_dense(const Matrix &w, const uint8_t *at, const Inputs *x, float (*y)[16]) {
    __m512 total[M][2];
    for (int m = 0; m < M; m++) total[m][0] = total[m][1] = _mm512_setzero_ps();
    for (int b = 0; b < w.blocks; b++, at += 1024)
        for (int j = 0; j < 16; j++) {
            __m512bh weights = (__m512bh)_mm512_loadu_si512(at + 64 * j);
            for (int m = 0; m < M; m++)
                total[m][j & 1] =
                    _mm512_dpbf16_ps(total[m][j & 1], weights, pair(x[m].half + 32 * b + 2 * j));
        }
    for (int m = 0; m < M; m++)
        _mm512_storeu_ps(y[m], _mm512_add_ps(total[m][0], total[m][1]));
}

template <int M>
static void tile_int8_bytes(const Matrix &w, const uint8_t *at, const Inputs *x, float (*y)[16]) {
    __m512 total[M];
    for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
    for (int b = 0; b < w.blocks; b++, at += 512) {
        __m512i exact[M];
        for (int m = 0; m < M; m++) exact[m] = _mm512_setzero_si512();
        for (int j = 0; j < 8; j++) {
            __m512i weights = _mm512_loadu_si512(at + 64 * j);
            for (int m = 0; m < M; m++)
                exact[m] =
                    _mm512_dpbusd_epi32(exact[m], weights, spread(x[m].byte + 32 * b + 4 * j));
        }
        for (int m = 0; m < M; m++) { /* the weights' + 128 is taken off again */
            __m512 offset = _mm512_set1_ps(-128.0f * x[m].sum[b]);
            __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact[m]),
                                         _mm512_set1_ps(x[m].scale[b]), offset);
            total[m] = _mm512_add_ps(total[m], sum);
        }
    }
    for (int m = 0; m < M; m++) _mm512_storeu_ps(y[m], total[m]);
}

/* Two of the four bytes in each 32-bit lane, less 128, as a pair of bfloat16. */
template <int BYTE>
static inline __m512bh widen(__m512i weights) {
    __m512i low = _mm512_and_si512(_mm512_srli_epi32(weights, 8 * BYTE), _mm512_set1_epi32(255));
    __m512i high =
        _mm512_and_si512(_mm512_srli_epi32(weights, 8 * BYTE + 16), _mm512_set1_epi32(255));
    __m512i minus = _mm512_set1_epi32(128);
    /* integers of eight bits are exact in bfloat16: the upper half of their float32 is all */
    __m512i a = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(low, minus)));
    __m512i c = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(high, minus)));
    return (__m512bh)_mm512_or_si512(_mm512_srli_epi32(a, 16), c);
}

template <int M>
static void tile_int8_halves(const Matrix &w, const uint8_t *at, const Inputs *x, float (*y)[16]) {
    __m512 total[M];
    for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
    for (int b = 0; b < w.blocks; b++, at += 512)
        for (int j = 0; j < 8; j++) {
            __m512i weights = _mm512_loadu_si512(at + 64 * j);
            __m512bh even = widen<0>(weights), odd = widen<1>(weights);
            for (int m = 0; m < M; m++) {
                const uint16_t *half = x[m].half + 32 * b + 4 * j;
                total[m] = _mm512_dpbf16_ps(total[m], even, pair(half));
                total[m] = _mm512_dpbf16_ps(total[m], odd, pair(half + 2));
            }
        }
    for (int m = 0; m < M; m++) _mm512_storeu_ps(y[m], total[m]);
}

static inline __m512 table16(const uint8_t *at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
}

template <int M>
static void tile_int4_bytes(const Matrix &w, const uint8_t *at, const Inputs *x, float (*y)[16]) {
    __m512 total[M], scale = _mm512_setzero_ps(), minimum = scale;
    const __m512i low = _mm512_set1_epi8(15);
    for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
    for (int b = 0, left = 0; b < w.blocks; b++, at += 256, left--) {
        if (left == 0) {
            scale = table16(at), minimum = table16(at + 32);
            at += 64, left = w.group;
        }
        _mm_prefetch((const char *)at + 2048, _MM_HINT_T0);
        _mm_prefetch((const char *)at + 2112, _MM_HINT_T0);
        _mm_prefetch((const char *)at + 2176, _MM_HINT_T0);
        _mm_prefetch((const char *)at + 2240, _MM_HINT_T0);
        __m512i first[M], second[M];
        for (int m = 0; m < M; m++) first[m] = second[m] = _mm512_setzero_si512();
        for (int j = 0; j < 4; j++) {
            __m512i both = _mm512_loadu_si512(at + 64 * j);
            __m512i a = _mm512_and_si512(both, low);
            __m512i c = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
            for (int m = 0; m < M; m++) {
                const int8_t *byte = x[m].byte + 32 * b + 4 * j;
                first[m] = _mm512_dpbusd_epi32(first[m], a, spread(byte));
                second[m] = _mm512_dpbusd_epi32(second[m], c, spread(byte + 16));
            }
        }
        for (int m = 0; m < M; m++) {
            __m512 exact = _mm512_cvtepi32_ps(_mm512_add_epi32(first[m], second[m]));
            __m512 scaled = _mm512_mul_ps(scale, _mm512_set1_ps(x[m].scale[b]));
            total[m] = _mm512_fmadd_ps(exact, scaled, total[m]);
            total[m] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x[m].sum[b]), total[m]);
        }
    }
    for (int m = 0; m < M; m++) _mm512_storeu_ps(y[m], total[m]);
}

template <int M>
static void tile_int4_halves(const Matrix &w, const uint8_t *at, const Inputs *x, float (*y)[16]) {
    /* 0 … 15 in bfloat16, twice: the look-up then ignores the fifth bit of its index */
    static const uint16_t numbers[16] = {0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
                                         0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130,
                                         0x4140, 0x4150, 0x4160, 0x4170};
    const __m512i table =
        _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)numbers));
    __m512 total[M], scale = _mm512_setzero_ps(), minimum = scale;
    for (int m = 0; m < M; m++) total[m] = _mm512_setzero_ps();
    for (int b = 0, left = 0; b < w.blocks; b++, at += 256, left--) {
        if (left == 0) {
            scale = table16(at), minimum = table16(at + 32);
            at += 64, left = w.group;
        }
        __m512 first[M], second[M];
        for (int m = 0; m < M; m++) first[m] = second[m] = _mm512_setzero_ps();
        for (int j = 0; j < 4; j++) {
            __m512i both = _mm512_loadu_si512(at + 64 * j);
            __m512bh codes[4];
            codes[0] = (__m512bh)_mm512_permutexvar_epi16(both, table);
            codes[1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 8), table);
            codes[2] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), table);
            codes[3] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 12), table);
            for (int m = 0; m < M; m++) {
                const uint16_t *half = x[m].half + 32 * b + 4 * j;
                first[m] = _mm512_dpbf16_ps(first[m], codes[0], pair(half));
                second[m] = _mm512_dpbf16_ps(second[m], codes[1], pair(half + 2));
                first[m] = _mm512_dpbf16_ps(first[m], codes[2], pair(half + 16));
                second[m] = _mm512_dpbf16_ps(second[m], codes[3], pair(half + 18));
            }
        }
        for (int m = 0; m < M; m++) {
            total[m] = _mm512_fmadd_ps(_mm512_add_ps(first[m], second[m]), scale, total[m]);
            total[m] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x[m].sum[b]), total[m]);
        }
    }
    for (int m = 0; m < M; m++) _mm512_storeu_ps(y[m], total[m]);
}

template <int M>
static void tile_avx512(const Matrix &w, const uint8_t *at, const Inputs *x, float (*y)[16]) {
    if (w.scheme == DENSE) return tile_dense<M>(w, at, x, y);
    if (w.scheme == INT8)
        return w.int8_inputs ? tile_int8_bytes<M>(w, at, x, y) : tile_int8_halves<M>(w, at, x, y);
    return w.int8_inputs ? tile_int4_bytes<M>(w, at, x, y) : tile_int4_halves<M>(w, at, x, y);
}
#pragma GCC pop_options

static inline bool has_avx512() {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bf16");
}
#else
static inline bool has_avx512() { return false; }
#endif

/* One tile for `count` ≤ 8 vectors. */
static inline void multiply_tile(const Matrix &w, int path, int tile, const Inputs *x, int count,
                                 float (*y)[16]) {
    const uint8_t *at = w.data + (size_t)tile * w.tile_bytes();
#if defined(__x86_64__)
    if (path == AVX512) {
        int done = 0;
        for (; count - done >= 4; done += 4) tile_avx512<4>(w, at, x + done, y + done);
        if (count - done >= 2) tile_avx512<2>(w, at, x + done, y + done), done += 2;
        if (count - done) tile_avx512<1>(w, at, x + done, y + done);
    } else
#endif
        tile_portable(w, at, x, count, y);
    for (int m = 0; m < count; m++)
        for (int r = 0; r < 16; r++) {
            if (w.scheme == INT8) y[m][r] *= w.scale[tile * 16 + r];
            if (w.bias) y[m][r] += w.bias[tile * 16 + r];
        }
}

}  // namespace slip
