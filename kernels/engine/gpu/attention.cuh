/* Decode attention with what comes before it: norms, rotation, cache write; split over positions.
 *
 * Flash-decoding (Dao et al. 2023): block (kv head, split, token). Cached positions come in tiles
 * of 32, tile i belongs to split i mod SPLITS. A split takes 32 at once, of two tiles where the
 * newest position ends one, so that a window of 32 · SPLITS is seen in one go wherever it begins.
 * Two neighbouring keys of those belong to a warp, and two neighbouring columns of the values to a
 * thread, every so many keys. Then the splits' sums are added up: of a sliding window, on sm_90, by a
 * cluster of blocks that write to each other's shared memory; else by whichever block of a head and
 * token ends last. All of that depends on absolute positions only, so a token verified among others
 * is bit for bit the token decoded alone.
 *
 * What earlier steps cached is fetched before the kernel's inputs are there. That is safe because
 * the first kernel of a step (embedding.py) lets nobody begin before the last step has ended.
 *
 * Of queries and keys, a lane holds HEAD_DIM / 64 neighbours of the first half and the same of the
 * second, which are what rotation pairs. Keys and values of the newest tokens come from the
 * projections; block (head, split, n) writes those of token n to the cache.
 *
 * The cache holds bfloat16, or int8 codes with a scale for each vector; the newest tokens' are made
 * into codes before anybody looks at them, so that they look the same now and later. It lies in one
 * piece, or in pages that are somewhere each.
 */
#pragma once
#include <cooperative_groups.h>
#include <cuda_bf16.h>

#include "device.cuh"

struct Attention {
    const float *qkv;      /* [m, (heads + 2 kv_heads) · head_dim]; queries only if `shared` */
    const float *cos, *sin; /* [positions, head_dim / 2] */
    const float *query_norm, *key_norm; /* [head_dim], or null */
    void *key, *value;             /* [kv_heads, context, head_dim] */
    float *key_scale, *value_scale; /* [kv_heads, context] if those are int8 codes, or null */
    void *const *pages; /* each [2, kv_heads, PAGE, head_dim], instead of those; or null */
    const int *position;    /* how many tokens came before these */
    __nv_bfloat16 *out;     /* [m, heads · head_dim] */
    float *part, *most, *total; /* [m, kv_heads, SPLITS, group (· head_dim)] */
    int *arrived;           /* [m, kv_heads], zero before and after */
    float eps, scale;
    int m, kv_heads, group, head_dim, window, context, shared, value_norm;
    int clustered; /* a short window's splits add up in a cluster of blocks (sm_90) */
};

constexpr int PAGE = 64; /* positions */
constexpr int KEYS = 32, WARP_KEYS = 2, ATTENTION_WARPS = KEYS / WARP_KEYS;
constexpr int ATTENTION_THREADS = 32 * ATTENTION_WARPS;
constexpr int WIDTH = 2; /* neighbouring columns of the values that a thread has */
constexpr int MOST_SPLITS = 32, CLUSTER = 16; /* splits of any cache, of a short window */

__device__ __forceinline__ void from_float(float x, int8_t &to) { to = (int8_t)x; }
__device__ __forceinline__ void from_float(float x, float &to) { to = x; }
__device__ __forceinline__ void from_float(float x, __nv_bfloat16 &to) { to = __float2bfloat16(x); }

/* Neighbours that are loaded and stored at once. */
template <int PAIRS, class T>
struct alignas(PAIRS * sizeof(T)) Chunk {
    T at[PAIRS];
};

/* Neighbours from a cache, unconverted, so that many loads can be under way; in few registers, which
 * a compiler doesn't see to by itself.
 */
template <int COUNT, class T>
struct Packed {
    static constexpr int BYTES = COUNT * sizeof(T);
    alignas(BYTES < 4 ? 4 : BYTES) uint32_t words[(BYTES + 3) / 4];

    __device__ __forceinline__ void load(const T *from) {
        if constexpr (BYTES == 1) words[0] = *(const uint8_t *)from;
        else if constexpr (BYTES == 2) words[0] = *(const uint16_t *)from;
        else if constexpr (BYTES == 4) words[0] = *(const uint32_t *)from;
        else if constexpr (BYTES == 8) *(uint2 *)words = *(const uint2 *)from;
        else *(uint4 *)words = *(const uint4 *)from;
        static_assert(BYTES <= 16, "one load");
    }

    __device__ __forceinline__ float at(int i) const {
        if constexpr (sizeof(T) == 1) return (float)(int8_t)(words[i / 4] >> 8 * (i % 4));
        return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    }
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

    /* Becomes codes of -127 to 127; returns what they are to be multiplied with. */
    __device__ __forceinline__ float quantise() {
        float most = 0.0f;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) most = fmaxf(most, fmaxf(fabsf(a[i]), fabsf(b[i])));
        float scale = fmaxf(warp_max(most), 1e-20f) / 127.0f;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) a[i] = rintf(a[i] / scale), b[i] = rintf(b[i] / scale);
        return scale;
    }

    /* By the angles whose cosines and sines are in `by`. */
    __device__ __forceinline__ void rotate(const Vector &by) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            float first = a[i];
            a[i] = first * by.a[i] - b[i] * by.b[i];
            b[i] = b[i] * by.a[i] + first * by.b[i];
        }
    }

    __device__ __forceinline__ void load_angles(const Attention &p, int at) {
        size_t row = (size_t)at * 32 + threadIdx.x % 32;
        Chunk<PAIRS, float> first = ((const Chunk<PAIRS, float> *)p.cos)[row];
        Chunk<PAIRS, float> second = ((const Chunk<PAIRS, float> *)p.sin)[row];
#pragma unroll
        for (int i = 0; i < PAIRS; i++) a[i] = first.at[i], b[i] = second.at[i];
    }

    template <class T>
    __device__ __forceinline__ void store(T *at) const {
        Chunk<PAIRS, T> first, second;
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            from_float(a[i], first.at[i]), from_float(b[i], second.at[i]);
        auto *chunks = (Chunk<PAIRS, T> *)at + threadIdx.x % 32;
        chunks[0] = first, chunks[32] = second;
    }
};

/* A lane's share of a cache's row. */
template <int PAIRS, class T>
struct Row {
    Packed<PAIRS, T> a, b;

    __device__ __forceinline__ void load(const T *at) {
        at += PAIRS * (threadIdx.x % 32);
        a.load(at), b.load(at + 32 * PAIRS);
    }
};

/* What a block shares. What was found takes the place of what it was found with. */
template <int PAIRS, int GROUP, class T>
struct alignas(16) AttentionRoom {
    static constexpr int HEAD_DIM = 64 * PAIRS;
    static constexpr int TEAMS = ATTENTION_THREADS * WIDTH / HEAD_DIM; /* that have all columns */
    union {
        struct {
            T fresh[2][MOST][HEAD_DIM];
            float queries[GROUP][HEAD_DIM];
        };
        float found[TEAMS][GROUP][HEAD_DIM];
    };
    float fresh_scales[2][MOST];
    float scores[GROUP][KEYS], shrink[GROUP]; /* KEYS or splits, which are at most as many */
    float part[GROUP * HEAD_DIM]; /* this split's; in a cluster, all splits' of some columns */
    float most[MOST_SPLITS][GROUP], total[MOST_SPLITS][GROUP]; /* of all splits; of one: the first */
    bool last;
};

/* One block's part: token n, the cached positions of a split, the queries of a key/value head. */
template <int PAIRS, int GROUP, int SPLITS, class T>
struct Attending {
    typedef AttentionRoom<PAIRS, GROUP, T> Room;
    static constexpr bool CODES = sizeof(T) == 1;
    static constexpr int HEAD_DIM = 64 * PAIRS, TEAMS = Room::TEAMS, TEAM_KEYS = KEYS / TEAMS;
    static constexpr int TEAM = ATTENTION_THREADS / TEAMS;
    static constexpr int OWN = GROUP * HEAD_DIM / SPLITS; /* sums that a block of a cluster adds up */
    static constexpr int AROUND = SPLITS * KEYS; /* positions from one of a split's tiles to the next */
    int kv, split, n, start, here, oldest;
    Row<PAIRS, T> k[WARP_KEYS];
    Packed<WIDTH, T> v[TEAM_KEYS];
    float k_scales[WARP_KEYS], v_scale; /* of codes; of the value at this lane's position */

    __device__ __forceinline__ T *key_row(const Attention &p, int at) const {
        if (p.pages)
            return (T *)p.pages[at / PAGE] + ((size_t)kv * PAGE + at % PAGE) * HEAD_DIM;
        return (T *)p.key + scale_of(p, at) * HEAD_DIM;
    }

    __device__ __forceinline__ T *value_row(const Attention &p, int at) const {
        if (p.pages) return key_row(p, at) + (size_t)p.kv_heads * PAGE * HEAD_DIM;
        return (T *)p.value + scale_of(p, at) * HEAD_DIM;
    }

    __device__ __forceinline__ size_t scale_of(const Attention &p, int at) const {
        return (size_t)kv * p.context + at;
    }

    /* The last position up to `newest` that is a split's nth, or anything below 0. */
    __device__ __forceinline__ int nth(int newest, int n) const {
        return newest - (newest - (split * KEYS + n) & AROUND - 1);
    }

    __device__ __forceinline__ static int number_of_warp(int j) {
        return threadIdx.x / 32 * WARP_KEYS + j;
    }

    __device__ __forceinline__ static int number_of_team(int j) {
        return j * TEAMS + threadIdx.x / TEAM;
    }

    /* The split's last position up to `newest`; whether it has any is whether that is old enough. */
    __device__ __forceinline__ int last(int newest) const {
        return newest / KEYS % SPLITS == split ? newest : nth(newest, KEYS - 1);
    }

    /* What was cached before this step; no branches, so that all loads are under way at once. */
    __device__ __forceinline__ void fetch(const Attention &p, int newest) {
        int cached = p.shared ? here : max(start - 1, 0), column = threadIdx.x % TEAM;
        auto within = [&](int at) { return max(min(at, cached), 0); };
#pragma unroll
        for (int j = 0; j < WARP_KEYS; j++) {
            int at = within(nth(newest, number_of_warp(j)));
            k[j].load(key_row(p, at));
            if constexpr (CODES) k_scales[j] = p.key_scale[scale_of(p, at)];
        }
#pragma unroll
        for (int j = 0; j < TEAM_KEYS; j++)
            v[j].load(value_row(p, within(nth(newest, number_of_team(j)))) + WIDTH * column);
        if constexpr (CODES)
            v_scale = p.value_scale[scale_of(p, within(nth(newest, threadIdx.x % 32)))];
    }

    /* Which positions are this block's. */
    __device__ __forceinline__ void begin(const Attention &p, int head, int part, int token) {
        kv = head, split = part, n = token;
        start = __ldcg(p.position), here = start + n; /* this token's position */
        oldest = p.window ? max(0, here - p.window + 1) : 0;
    }

    /* Whether what it sees first is what earlier steps cached alone, and can be fetched at once. */
    __device__ __forceinline__ bool settled(const Attention &p) const {
        return !p.shared || (here / KEYS % SPLITS != split && start / KEYS % SPLITS != split);
    }

    /* What a warp prepares: one of the queries, or the key or value of one of the newest tokens. */
    struct Item {
        int which, token, head; /* 0, 1, 2: query, key, value */
        bool normed;
        Vector<PAIRS> norm, angles;
    };

    __device__ __forceinline__ int num_items(const Attention &p) const {
        return GROUP + (p.shared ? 0 : 2 * (n + 1));
    }

    /* Constants, which don't wait for anybody. */
    __device__ __forceinline__ void look_up(const Attention &p, int number, Item &item) const {
        bool query = number < GROUP;
        int heads = p.kv_heads * GROUP;
        item.which = query ? 0 : 1 + (number - GROUP) % 2;
        item.token = query ? n : (number - GROUP) / 2;
        item.head = query ? kv * GROUP + number : heads + (item.which - 1) * p.kv_heads + kv;
        const float *weights = query ? p.query_norm : item.which == 1 ? p.key_norm : nullptr;
        item.normed = weights || (item.which == 2 && p.value_norm);
        item.angles.load_angles(p, start + item.token);
        item.norm.fill(1.0f);
        if (weights) item.norm.load(weights);
    }

    /* Queries of this token; keys and values of the newest ones that are this split's. */
    __device__ __forceinline__ void prepare(const Attention &p, Room &room, Item &item) const {
        int heads = p.kv_heads * GROUP, warp = threadIdx.x / 32;
        size_t width = (size_t)(p.shared ? heads : heads + 2 * p.kv_heads) * HEAD_DIM;
        for (int number = warp; number < num_items(p); number += ATTENTION_WARPS) {
            if (number != warp) look_up(p, number, item);
            int which = item.which, at = start + item.token;
            if (which && at / KEYS % SPLITS != split) continue;
            Vector<PAIRS> x;
            x.load(p.qkv + item.token * width + (size_t)item.head * HEAD_DIM);
            if (item.normed) x.norm(item.norm, p.eps);
            if (which < 2) x.rotate(item.angles);
            if (which == 0) {
                x.store(room.queries[number]);
            } else {
                if constexpr (CODES) {
                    float scale = x.quantise();
                    room.fresh_scales[which - 1][item.token] = scale;
                    if (item.token == n)
                        (which == 1 ? p.key_scale : p.value_scale)[scale_of(p, at)] = scale;
                }
                x.store(room.fresh[which - 1][item.token]);
                if (item.token == n) x.store(which == 1 ? key_row(p, at) : value_row(p, at));
            }
        }
    }

    __device__ __forceinline__ void fetch_fresh(const Attention &p, int newest, const Room &room) {
        if (p.shared) return;
        int column = threadIdx.x % TEAM;
#pragma unroll
        for (int j = 0; j < WARP_KEYS; j++) {
            int token = nth(newest, number_of_warp(j)) - start;
            if (token < 0 || token > n) continue;
            k[j].load(room.fresh[0][token]);
            if constexpr (CODES) k_scales[j] = room.fresh_scales[0][token];
        }
#pragma unroll
        for (int j = 0; j < TEAM_KEYS; j++) {
            int token = nth(newest, number_of_team(j)) - start;
            if (token < 0 || token > n) continue;
            v[j].load(room.fresh[1][token] + WIDTH * column);
        }
        if constexpr (CODES) {
            int token = nth(newest, threadIdx.x % 32) - start;
            if (token >= 0 && token <= n) v_scale = room.fresh_scales[1][token];
        }
    }

    __device__ __forceinline__ void score(const Attention &p, int newest, Room &room) const {
        constexpr int SCORES = GROUP * WARP_KEYS, COUNT = (GROUP == 3 ? 4 : GROUP) * WARP_KEYS;
        constexpr int LANES = 32 / COUNT;
        float sums[COUNT] = {};
#pragma unroll
        for (int h = 0; h < GROUP; h++) {
            Vector<PAIRS> q;
            q.load(room.queries[h]);
#pragma unroll
            for (int j = 0; j < WARP_KEYS; j++) {
                float sum = 0.0f;
#pragma unroll
                for (int i = 0; i < PAIRS; i++)
                    sum += q.a[i] * k[j].a.at(i) + q.b[i] * k[j].b.at(i);
                sums[h * WARP_KEYS + j] = CODES ? sum * k_scales[j] : sum;
            }
        }
        float sum = warp_sums(sums);
        int lane = threadIdx.x % 32, number = lane / LANES; /* head, then key */
        if (lane % LANES || number >= SCORES) return;
        int key = number_of_warp(number % WARP_KEYS);
        bool seen = nth(newest, key) >= oldest;
        room.scores[number / WARP_KEYS][key] = seen ? sum * p.scale : -INFINITY;
    }

    /* Whether this split has any positions. */
    __device__ __forceinline__ bool active() const { return last(here) >= oldest; }

    /* What this split finds, in room.part: sums of values, weighed as if no other split were. */
    __device__ __forceinline__ void run(const Attention &p, Room &room, Item &item) {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        int team = threadIdx.x / TEAM, column = threadIdx.x % TEAM;
        float most = -INFINITY, total = 0.0f; /* of head `warp` */
        Chunk<WIDTH, float> mixed[GROUP] = {};
        prepare(p, room, item);
        __syncthreads();
        for (int newest = here; last(newest) >= oldest; newest -= AROUND) {
            if (newest != here) {
                __syncthreads(); /* all are done with the last scores */
                fetch(p, newest);
            }
            fetch_fresh(p, newest, room);
            score(p, newest, room);
            __syncthreads();
            if (warp < GROUP) { /* weights; what has been added up shrinks if a higher one came */
                float own = room.scores[warp][lane], top = fmaxf(most, warp_max(own));
                bool none = top == -INFINITY;
                float weight = none ? 0.0f : __expf(own - top);
                float shrink = none ? 1.0f : __expf(most - top);
                total = total * shrink + warp_sum(weight), most = top;
                room.scores[warp][lane] = CODES ? weight * v_scale : weight;
                if (lane == 0) room.shrink[warp] = shrink;
            }
            __syncthreads();
#pragma unroll
            for (int h = 0; h < GROUP; h++) {
                float shrink = room.shrink[h];
#pragma unroll
                for (int i = 0; i < WIDTH; i++) mixed[h].at[i] *= shrink;
#pragma unroll
                for (int j = 0; j < TEAM_KEYS; j++) {
                    float weight = room.scores[h][j * TEAMS + team];
#pragma unroll
                    for (int i = 0; i < WIDTH; i++) mixed[h].at[i] += weight * v[j].at(i);
                }
            }
        }
        /* The teams together. Queries and fresh keys were last read before a barrier above. */
#pragma unroll
        for (int h = 0; h < GROUP; h++)
            ((Chunk<WIDTH, float> *)room.found[team][h])[column] = mixed[h];
        if (warp < GROUP) tell(room, warp, most, total);
        __syncthreads();
        for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += ATTENTION_THREADS) {
            float sum = 0.0f;
#pragma unroll
            for (int t = 0; t < TEAMS; t++) sum += room.found[t][i / HEAD_DIM][i % HEAD_DIM];
            *place(room, i) = sum;
        }
    }

    /* Where this split's sum i goes: in a cluster, to whoever adds up that column. */
    __device__ __forceinline__ float *place(Room &room, int i) const {
#if __CUDA_ARCH__ >= 900
        if constexpr (SPLITS == CLUSTER)
            return cooperative_groups::this_cluster().map_shared_rank(&room, i / OWN)->part +
                   split * OWN + i % OWN;
#endif
        return room.part + i;
    }

    /* A head's highest score and sum of weights in this split; by a warp. */
    __device__ __forceinline__ void tell(Room &room, int head, float most, float total) const {
        int lane = threadIdx.x % 32;
#if __CUDA_ARCH__ >= 900
        if constexpr (SPLITS == CLUSTER) {
            if (lane < CLUSTER) {
                Room *theirs = cooperative_groups::this_cluster().map_shared_rank(&room, lane);
                theirs->most[split][head] = most, theirs->total[split][head] = total;
            }
            __syncwarp(); /* barriers want whole warps */
            return;
        }
#endif
        if (lane == 0) room.most[0][head] = most, room.total[0][head] = total;
    }

    /* A split without positions. */
    __device__ __forceinline__ void find_nothing(Room &room) const {
        if (threadIdx.x / 32 < GROUP) tell(room, threadIdx.x / 32, -INFINITY, 0.0f);
    }

    /* The blocks of a cluster are one head's and token's splits: each adds up some columns. */
    __device__ __forceinline__ void meet_in_cluster(const Attention &p, const Room &room) const {
        cluster_arrive(), cluster_wait();
        for (int i = threadIdx.x; i < OWN; i += ATTENTION_THREADS) {
            int at = split * OWN + i, head = at / HEAD_DIM;
            float most = -INFINITY, all = 0.0f, mix = 0.0f;
#pragma unroll
            for (int s = 0; s < SPLITS; s++) most = fmaxf(most, room.most[s][head]);
#pragma unroll
            for (int s = 0; s < SPLITS; s++) {
                float weight = __expf(room.most[s][head] - most);
                if (weight == 0.0f) continue; /* found nothing, and wrote nothing */
                all = fmaf(weight, room.total[s][head], all);
                mix = fmaf(weight, room.part[s * OWN + i], mix);
            }
            p.out[((size_t)n * p.kv_heads + kv) * GROUP * HEAD_DIM + at] =
                __float2bfloat16(mix / all);
        }
    }

    /* Whichever block of a head and token ends last adds up what all found. */
    __device__ __forceinline__ void meet(const Attention &p, Room &room) const {
        int base = oldest / KEYS, splits = min(here / KEYS - base + 1, SPLITS);
        int heads = p.kv_heads * GROUP;
        size_t group = (size_t)n * p.kv_heads + kv, mine = (group * SPLITS + split) * GROUP;
        for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += ATTENTION_THREADS)
            p.part[mine * HEAD_DIM + i] = room.part[i]; /* its own */
        if (threadIdx.x < GROUP) {
            p.most[mine + threadIdx.x] = room.most[0][threadIdx.x];
            p.total[mine + threadIdx.x] = room.total[0][threadIdx.x];
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence(); /* for all of the block, which has met */
            room.last = atomicAdd(p.arrived + group, 1) == splits - 1;
            __threadfence();
        }
        __syncthreads();
        if (!room.last) return;
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        if (warp < GROUP) { /* what each split's sums weigh */
            size_t at = (group * SPLITS + (base + lane) % SPLITS) * GROUP + warp;
            bool there = lane < splits;
            float most = there ? __ldcg(p.most + at) : -INFINITY;
            float total = there ? __ldcg(p.total + at) : 0.0f;
            float weight = __expf(most - warp_max(most));
            room.scores[warp][lane] = weight / warp_sum(weight * total);
        }
        __syncthreads();
        const auto *parts = (const float4 *)(p.part + group * SPLITS * GROUP * HEAD_DIM);
        for (int i = threadIdx.x; i < GROUP * HEAD_DIM / 4; i += ATTENTION_THREADS) {
            int h = i / (HEAD_DIM / 4);
            float4 mix = {};
#pragma unroll 8
            for (int s = 0; s < splits; s++) {
                float weight = room.scores[h][s];
                float4 theirs = __ldcg(parts + (base + s) % SPLITS * (GROUP * HEAD_DIM / 4) + i);
                mix.x += weight * theirs.x, mix.y += weight * theirs.y;
                mix.z += weight * theirs.z, mix.w += weight * theirs.w;
            }
            __nv_bfloat16 *out = p.out + ((size_t)n * heads + kv * GROUP) * HEAD_DIM;
            ((__nv_bfloat162 *)out)[2 * i] = __floats2bfloat162_rn(mix.x, mix.y);
            ((__nv_bfloat162 *)out)[2 * i + 1] = __floats2bfloat162_rn(mix.z, mix.w);
        }
        if (threadIdx.x == 0) p.arrived[group] = 0;
    }
};
static_assert(KEYS == 32 && MOST_SPLITS == 32, "a lane for each");

template <int PAIRS, int GROUP, int SPLITS, class T>
__global__ void __launch_bounds__(ATTENTION_THREADS) attention_kernel(const Attention p) {
#if __CUDA_ARCH__ < 900
    if constexpr (SPLITS == CLUSTER) return; /* no clusters there: not worth compiling */
#endif
    extern __shared__ __align__(16) uint8_t dynamic[];
    typedef Attending<PAIRS, GROUP, SPLITS, T> Block;
    auto &room = *(AttentionRoom<PAIRS, GROUP, T> *)dynamic;
    Block block;
    typename Block::Item item;
    launch_dependents();
    if constexpr (SPLITS == CLUSTER) cluster_arrive(); /* this block's memory is there */
    block.begin(p, blockIdx.x, blockIdx.y, blockIdx.z);
    bool active = block.active(), early = active && block.settled(p);
    if (early) block.fetch(p, block.here);
    int warp = threadIdx.x / 32;
    if (active && warp < block.num_items(p)) block.look_up(p, warp, item);
    wait_for_inputs();
    if constexpr (SPLITS == CLUSTER) cluster_wait(); /* and that of the others */
    if (active && !early) block.fetch(p, block.here);
    if (active) block.run(p, room, item);
    if constexpr (SPLITS == CLUSTER) {
        if (!active) block.find_nothing(room);
        block.meet_in_cluster(p, room);
    } else if (active) {
        block.meet(p, room);
    }
}

/* What is done with the kernel of some sizes, once they are known. */
template <int PAIRS, int GROUP, class T, class Do>
static int with_kernel(const Attention *p, bool dependent, void *queue, Do act) {
    size_t room = sizeof(AttentionRoom<PAIRS, GROUP, T>);
    if (p->clustered)
        return act(Launch(attention_kernel<PAIRS, GROUP, CLUSTER, T>,
                          dim3(p->kv_heads, CLUSTER, p->m), ATTENTION_THREADS, room, true, queue,
                          dim3(1, CLUSTER)));
    return act(Launch(attention_kernel<PAIRS, GROUP, MOST_SPLITS, T>,
                      dim3(p->kv_heads, MOST_SPLITS, p->m), ATTENTION_THREADS, room, dependent,
                      queue));
}

template <int PAIRS, int GROUP, class Do>
static int with_group(const Attention *p, bool dependent, void *queue, Do act) {
    if (p->key_scale) return with_kernel<PAIRS, GROUP, int8_t>(p, dependent, queue, act);
    return with_kernel<PAIRS, GROUP, __nv_bfloat16>(p, dependent, queue, act);
}

template <int PAIRS, class Do>
static int with_pairs(const Attention *p, bool dependent, void *queue, Do act) {
    switch (p->group) {
        case 1: return with_group<PAIRS, 1>(p, dependent, queue, act);
        case 2: return with_group<PAIRS, 2>(p, dependent, queue, act);
        case 3: return with_group<PAIRS, 3>(p, dependent, queue, act);
        case 4: return with_group<PAIRS, 4>(p, dependent, queue, act);
        case 8: return with_group<PAIRS, 8>(p, dependent, queue, act);
        default: return -1;
    }
}

template <class Do>
static int with_sizes(const Attention *p, bool dependent, void *queue, Do act) {
    switch (p->head_dim) {
        case 64: return with_pairs<1>(p, dependent, queue, act);
        case 128: return with_pairs<2>(p, dependent, queue, act);
        case 256: return with_pairs<4>(p, dependent, queue, act);
        case 512: return with_pairs<8>(p, dependent, queue, act);
        default: return -1;
    }
}

/* Returns a CUDA error, or -1 for sizes that no kernel was made for. */
extern "C" int attention_launch(const Attention *p, int dependent, void *queue) {
    return with_sizes(p, dependent, queue, [&](const auto &how) { return how.run(*p); });
}

/* How many clusters of blocks the GPU can run at once; 0 where its parts are too small for one. */
extern "C" int attention_clusters(const Attention *p) {
    return with_sizes(p, true, nullptr, [](const auto &how) { return how.clusters(); });
}
