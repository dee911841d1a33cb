/* Decode attention with what comes before it: norms, rotation, cache write; split over positions.
 *
 * Flash-decoding (Dao et al. 2023): block (kv head, split, token). Cached positions come in tiles of
 * 32, tile i belongs to split i mod SPLITS, and a warp takes four neighbours of a tile. Whichever
 * block of a head and token ends last adds up what the others found. All of that depends on absolute
 * positions only, so a token verified among others is bit for bit the token decoded alone.
 *
 * A lane holds HEAD_DIM / 64 neighbours of the first half of a head and the same of the second, which
 * are what rotation pairs. Keys and values of the newest tokens come from the projections; block
 * (head, split, n) writes those of token n to the cache.
 */
#pragma once
#include <cuda_bf16.h>

#include "device.cuh"

struct Attention {
    const float *qkv;      /* [m, (heads + 2 kv_heads) · head_dim]; queries only if `shared` */
    const float *cos, *sin; /* [positions, head_dim / 2] */
    const float *query_norm, *key_norm; /* [head_dim], or null */
    __nv_bfloat16 *key, *value; /* [kv_heads, context, head_dim] */
    const int *position;    /* how many tokens came before these */
    __nv_bfloat16 *out;     /* [m, heads · head_dim] */
    float *part, *most, *total; /* [m, kv_heads, SPLITS, group (· head_dim)] */
    int *arrived;           /* [m, kv_heads], zero before and after */
    float eps, scale;
    int m, kv_heads, group, head_dim, window, context, shared, value_norm;
};

constexpr int SPLITS = 16, KEYS = 32, WARP_KEYS = 4, ATTENTION_WARPS = KEYS / WARP_KEYS;

__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float x, float &to) { to = x; }
__device__ __forceinline__ void from_float(float x, __nv_bfloat16 &to) { to = __float2bfloat16(x); }

/* Neighbours that are loaded and stored at once. */
template <int PAIRS, class T>
struct alignas(PAIRS * sizeof(T)) Chunk {
    T at[PAIRS];
};

/* A lane's share of one vector. */
template <int PAIRS>
struct Vector {
    float a[PAIRS], b[PAIRS];

    __device__ __forceinline__ void load(const float *at) {
        const auto *chunks = (const Chunk<PAIRS, float> *)at + threadIdx.x % 32;
        Chunk<PAIRS, float> first = chunks[0], second = chunks[32];
#pragma unroll
        for (int i = 0; i < PAIRS; i++) a[i] = first.at[i], b[i] = second.at[i];
    }

    __device__ __forceinline__ void fill(float value) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) a[i] = b[i] = value;
    }

    __device__ __forceinline__ void norm(const Vector &weight, float eps) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) sum += a[i] * a[i] + b[i] * b[i];
        float scale = rsqrtf(warp_sum(sum) / (64 * PAIRS) + eps);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) a[i] *= scale * weight.a[i], b[i] *= scale * weight.b[i];
    }

    __device__ __forceinline__ void rotate(const Attention &p, int at) {
        size_t row = (size_t)at * 32 + threadIdx.x % 32;
        Chunk<PAIRS, float> c = ((const Chunk<PAIRS, float> *)p.cos)[row];
        Chunk<PAIRS, float> s = ((const Chunk<PAIRS, float> *)p.sin)[row];
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            float first = a[i];
            a[i] = first * c.at[i] - b[i] * s.at[i];
            b[i] = b[i] * c.at[i] + first * s.at[i];
        }
    }

    template <class T>
    __device__ __forceinline__ void store(T *at) const {
        Chunk<PAIRS, T> first, second;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) from_float(a[i], first.at[i]), from_float(b[i], second.at[i]);
        auto *chunks = (Chunk<PAIRS, T> *)at + threadIdx.x % 32;
        chunks[0] = first, chunks[32] = second;
    }
};

/* What lies in a cache's row, unconverted, so that many loads can be under way. */
template <int PAIRS>
struct Row {
    Chunk<PAIRS, __nv_bfloat16> a, b;

    __device__ __forceinline__ void load(const __nv_bfloat16 *at) {
        const auto *chunks = (const Chunk<PAIRS, __nv_bfloat16> *)at + threadIdx.x % 32;
        a = chunks[0], b = chunks[32];
    }
};

template <int PAIRS, int GROUP>
__global__ void __launch_bounds__(32 * ATTENTION_WARPS) attention_kernel(const Attention p) {
    constexpr int HEAD_DIM = 64 * PAIRS;
    extern __shared__ __align__(16) float found[]; /* [warps, GROUP, HEAD_DIM] */
    __shared__ __align__(16) __nv_bfloat16 fresh[2][MOST][HEAD_DIM];
    __shared__ float queries[GROUP][HEAD_DIM];
    __shared__ float most_of[ATTENTION_WARPS][GROUP], total_of[ATTENTION_WARPS][GROUP];
    __shared__ bool last;
    int kv = blockIdx.x, split = blockIdx.y, n = blockIdx.z;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, heads = p.kv_heads * GROUP;
    size_t width = (size_t)(p.shared ? heads : heads + 2 * p.kv_heads) * HEAD_DIM;
    launch_dependents();
    Vector<PAIRS> query_norm, key_norm; /* constants: they don't wait */
    if (p.query_norm) query_norm.load(p.query_norm);
    if (p.key_norm) key_norm.load(p.key_norm);
    wait_for_inputs();
    int start = *p.position, here = start + n; /* this token's position */
    auto row_of = [&](int at) { return ((size_t)kv * p.context + at) * HEAD_DIM; };
    int oldest = p.window ? max(0, here - p.window + 1) : 0, first = oldest / KEYS;
    first += (split - first % SPLITS + SPLITS) % SPLITS;

    /* A warp's keys and values of a tile; those of the newest tokens come later. */
    Row<PAIRS> k[WARP_KEYS], v[WARP_KEYS];
    bool seen[WARP_KEYS];
    auto fetch = [&](int tile) {
#pragma unroll
        for (int j = 0; j < WARP_KEYS; j++) {
            int at = tile * KEYS + warp * WARP_KEYS + j;
            seen[j] = at >= oldest && at <= here;
            if (!seen[j] || (!p.shared && at >= start)) continue;
            k[j].load(p.key + row_of(at));
            v[j].load(p.value + row_of(at));
        }
    };
    auto fetch_fresh = [&](int tile) {
        if (p.shared) return;
#pragma unroll
        for (int j = 0; j < WARP_KEYS; j++) {
            int token = tile * KEYS + warp * WARP_KEYS + j - start;
            if (token < 0 || token > n) continue;
            k[j].load(fresh[0][token]);
            v[j].load(fresh[1][token]);
        }
    };
    if (first * KEYS <= here) fetch(first);

    /* Queries of this token; keys and values of the newest ones that are this split's. */
    int items = GROUP + (p.shared ? 0 : 2 * (n + 1));
    for (int item = warp; item < items; item += ATTENTION_WARPS) {
        Vector<PAIRS> x;
        if (item < GROUP) {
            x.load(p.qkv + n * width + (size_t)(kv * GROUP + item) * HEAD_DIM);
            if (p.query_norm) x.norm(query_norm, p.eps);
            x.rotate(p, here);
            x.store(queries[item]);
            continue;
        }
        int which = (item - GROUP) % 2, token = (item - GROUP) / 2, at = start + token;
        if (at / KEYS % SPLITS != split) continue;
        size_t head = heads + which * p.kv_heads + kv;
        x.load(p.qkv + token * width + head * HEAD_DIM);
        if (which == 0) {
            if (p.key_norm) x.norm(key_norm, p.eps);
            x.rotate(p, at);
        } else if (p.value_norm) {
            key_norm.fill(1.0f);
            x.norm(key_norm, p.eps);
            if (p.key_norm) key_norm.load(p.key_norm);
        }
        x.store(fresh[which][token]);
        if (token == n) x.store((which ? p.value : p.key) + row_of(at));
    }
    __syncthreads();

    Vector<PAIRS> q[GROUP], mixed[GROUP];
    float most[GROUP], total[GROUP];
#pragma unroll
    for (int h = 0; h < GROUP; h++) {
        q[h].load(queries[h]);
        most[h] = -INFINITY, total[h] = 0.0f;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) mixed[h].a[i] = mixed[h].b[i] = 0.0f;
    }
    for (int tile = first; tile * KEYS <= here; tile += SPLITS) {
        if (tile != first) fetch(tile);
        fetch_fresh(tile);
#pragma unroll
        for (int h = 0; h < GROUP; h++) {
            float score[WARP_KEYS], top = most[h];
#pragma unroll
            for (int j = 0; j < WARP_KEYS; j++) {
                float sum = 0.0f;
#pragma unroll
                for (int i = 0; i < PAIRS; i++)
                    sum += q[h].a[i] * to_float(k[j].a.at[i]) + q[h].b[i] * to_float(k[j].b.at[i]);
                sum = warp_sum(seen[j] ? sum : 0.0f);
                score[j] = seen[j] ? sum * p.scale : -INFINITY;
                top = fmaxf(top, score[j]);
            }
            if (top == -INFINITY) continue; /* nothing of this tile is seen */
            float shrink = __expf(most[h] - top);
            total[h] *= shrink, most[h] = top;
#pragma unroll
            for (int i = 0; i < PAIRS; i++) mixed[h].a[i] *= shrink, mixed[h].b[i] *= shrink;
#pragma unroll
            for (int j = 0; j < WARP_KEYS; j++) {
                if (!seen[j]) continue;
                float share = __expf(score[j] - top);
                total[h] += share;
#pragma unroll
                for (int i = 0; i < PAIRS; i++) {
                    mixed[h].a[i] += share * to_float(v[j].a.at[i]);
                    mixed[h].b[i] += share * to_float(v[j].b.at[i]);
                }
            }
        }
    }

    /* The block's warps together, then the head's blocks. */
#pragma unroll
    for (int h = 0; h < GROUP; h++) {
        mixed[h].store(found + (warp * GROUP + h) * HEAD_DIM);
        if (lane == 0) most_of[warp][h] = most[h], total_of[warp][h] = total[h];
    }
    __syncthreads();
    size_t group = (size_t)n * p.kv_heads + kv, mine = (group * SPLITS + split) * GROUP;
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += 32 * ATTENTION_WARPS) {
        int h = i / HEAD_DIM;
        float top = -INFINITY, sum = 0.0f, mix = 0.0f;
        for (int w = 0; w < ATTENTION_WARPS; w++) top = fmaxf(top, most_of[w][h]);
        for (int w = 0; w < ATTENTION_WARPS; w++) {
            float weight = top == -INFINITY ? 0.0f : __expf(most_of[w][h] - top);
            sum += weight * total_of[w][h];
            mix += weight * found[w * GROUP * HEAD_DIM + i];
        }
        p.part[mine * HEAD_DIM + i] = mix;
        if (i % HEAD_DIM == 0) p.most[mine + h] = top, p.total[mine + h] = sum;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(p.arrived + group, 1) == SPLITS - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    const float *tops = p.most + group * SPLITS * GROUP, *sums = p.total + group * SPLITS * GROUP;
    const auto *parts = (const float4 *)(p.part + group * SPLITS * GROUP * HEAD_DIM);
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM / 4; i += 32 * ATTENTION_WARPS) {
        int h = i / (HEAD_DIM / 4);
        float4 theirs[SPLITS], mix = {};
        float weight[SPLITS], total_of_split[SPLITS], top = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int s = 0; s < SPLITS; s++) { /* all loads before the first use */
            theirs[s] = __ldcg(parts + s * GROUP * HEAD_DIM / 4 + i);
            weight[s] = __ldcg(tops + s * GROUP + h);
            total_of_split[s] = __ldcg(sums + s * GROUP + h);
        }
#pragma unroll
        for (int s = 0; s < SPLITS; s++) top = fmaxf(top, weight[s]);
#pragma unroll
        for (int s = 0; s < SPLITS; s++) {
            float w = __expf(weight[s] - top);
            sum += w * total_of_split[s];
            mix.x += w * theirs[s].x, mix.y += w * theirs[s].y;
            mix.z += w * theirs[s].z, mix.w += w * theirs[s].w;
        }
        auto *out = (__nv_bfloat162 *)(p.out + ((size_t)n * heads + kv * GROUP) * HEAD_DIM) + 2 * i;
        out[0] = __floats2bfloat162_rn(mix.x / sum, mix.y / sum);
        out[1] = __floats2bfloat162_rn(mix.z / sum, mix.w / sum);
    }
    if (threadIdx.x == 0) p.arrived[group] = 0;
}

template <int PAIRS, int GROUP>
static int launch_attention(const Attention *p, int dependent, void *queue) {
    dim3 grid(p->kv_heads, SPLITS, p->m);
    size_t shared = sizeof(float) * ATTENTION_WARPS * GROUP * 64 * PAIRS;
    return launch(attention_kernel<PAIRS, GROUP>, *p, grid, 32 * ATTENTION_WARPS, shared,
                  dependent, queue);
}

template <int PAIRS>
static int launch_group(const Attention *p, int dependent, void *queue) {
    switch (p->group) {
        case 1: return launch_attention<PAIRS, 1>(p, dependent, queue);
        case 2: return launch_attention<PAIRS, 2>(p, dependent, queue);
        case 3: return launch_attention<PAIRS, 3>(p, dependent, queue);
        case 4: return launch_attention<PAIRS, 4>(p, dependent, queue);
        default: return -1;
    }
}

/* Returns a CUDA error, or -1 for sizes that no kernel was made for. */
extern "C" int attention_launch(const Attention *p, int dependent, void *queue) {
    switch (p->head_dim) {
        case 64: return launch_group<1>(p, dependent, queue);
        case 128: return launch_group<2>(p, dependent, queue);
        case 256: return launch_group<4>(p, dependent, queue);
        case 512: return launch_group<8>(p, dependent, queue);
        default: return -1;
    }
}
