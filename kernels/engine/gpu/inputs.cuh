/* What a matrix is multiplied with, as its products want it: bfloat16, or fixed point for codes.
 *
 * In fixed point, the inputs at a stage's columns share an exponent, that of the largest; each is a
 * signed number of 15 bits, high and low byte by themselves. A bfloat16 number of at least 1/64 of
 * the largest comes out exact; below, what is lost is 1/16384 of the largest at most, 1/64 of what
 * rounding the largest to bfloat16 may lose.
 */
#pragma once
#include "norm.cuh"
#include "stage.cuh"

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int NORM_MOST = 4096;        /* of a vector that is normed */
constexpr int MOST_STAGED = 24 * 1024; /* bytes of inputs that a block keeps for itself */

/* m vectors in shared memory, or for codes in memory that launches share: first, of each vector and
 * stage, its exponent and sums; then, of each vector, bfloat16 or one column of bytes and the other.
 */
template <class Weights>
struct Inputs {
    static constexpr bool CODES = Weights::SCHEME != DENSE;
    static constexpr int LANES = Weights::COLUMNS / 8; /* that have a stage's columns */
    uint8_t *room;
    int m, columns;

    __host__ __device__ static size_t bytes_of_numbers(int m, int columns) {
        return (m * (columns / Weights::COLUMNS) * Weights::NUMBERS + 3) / 4 * 16;
    }

    __host__ __device__ static size_t bytes(int m, int columns) {
        return bytes_of_numbers(m, columns) + (size_t)m * columns * 2;
    }

    __device__ __forceinline__ float *numbers() const { return (float *)room; }
    __device__ __forceinline__ uint8_t *x() const { return room + bytes_of_numbers(m, columns); }

    /* 8 inputs of vector n, of all lanes together. */
    __device__ __forceinline__ void put(int n, int chunk, bool inside, uint4 inputs) const {
        if constexpr (!CODES) {
            if (inside) ((uint4 *)x())[n * (columns / 8) + chunk] = inputs;
        } else {
            put_codes(n, chunk, inside, inputs);
        }
    }

    /* All of p.x. */
    __device__ __forceinline__ void take_in(const Gemv &p) const {
        constexpr int AT_ONCE = MOST_STAGED / 16 / THREADS; /* loads under way together */
        int chunks = m * columns / 8;
        for (int start = 0; start < chunks; start += AT_ONCE * THREADS) {
            uint4 held[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) held[j] = chunk_of(p, start + j * THREADS);
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) put_nth(start + j * THREADS, held[j]);
        }
    }

    /* A block's share of p.x, where all blocks fill one room. */
    __device__ __forceinline__ void take_share(const Gemv &p) const {
        int start = blockIdx.x * THREADS;
        put_nth(start, chunk_of(p, start));
    }

    /* What `before` makes of the only vector. */
    __device__ __forceinline__ void make(const Norm &before, bool keeps, float *shared) const {
        int chunks = columns / 8;
        Normer<THREADS, NORM_MOST, !CODES> normer; /* only dense matrices leave halves */
        normer.run(before, 0, keeps, shared);
        uint4 held[normer.CHUNKS]; /* all, before registers are needed for else */
#pragma unroll
        for (int c = 0; c < normer.CHUNKS; c++) held[c] = normer.chunk(c);
#pragma unroll
        for (int c = 0; c < normer.CHUNKS; c++) {
            int at = threadIdx.x + c * THREADS;
            if (at / 32 * 32 < chunks) put(0, at, at < chunks, held[c]);
        }
    }

  private:
    __device__ __forceinline__ uint4 chunk_of(const Gemv &p, int start) const {
        int at = start + threadIdx.x;
        return at < m * columns / 8 ? ((const uint4 *)p.x)[at] : uint4{0, 0, 0, 0};
    }

    /* The chunk that a thread holds, of all vectors' in a row. */
    __device__ __forceinline__ void put_nth(int start, uint4 held) const {
        int at = start + threadIdx.x, each = columns / 8;
        if (at / 32 * 32 >= m * each) return; /* a warp together */
        int n = m == 1 ? 0 : (int)((at + 0.5f) / each);
        put(n, at - n * each, at < m * each, held);
    }

    __device__ __forceinline__ void put_codes(int n, int chunk, bool inside, uint4 inputs) const {
        const uint32_t v[4] = {inputs.x, inputs.y, inputs.z, inputs.w};
        uint32_t most = 0; /* as bits, magnitudes are ordered as they are as numbers */
#pragma unroll
        for (int j = 0; j < 4; j++) most = __vmaxu2(most, v[j] & 0x7fff7fffu);
        most = max(most & 0xffffu, most >> 16);
        for (int reach = LANES / 2; reach; reach /= 2)
            most = max(most, __shfl_xor_sync(~0u, most, reach));
        /* Numbers below 2^(e + 1) become integers below 2^14. */
        uint32_t e = max(most & 0x7f80u, 27u << 7) << 16; /* at least 2^-100: all may be zero */
        float exponent = __uint_as_float(e - (13u << 23));
        float inverse = __uint_as_float((267u << 23) - e);
        if (most >= 0x7f80u) exponent = __uint_as_float(0x7fffffff); /* not finite: no number */

        /* In the lower bits of 1.5 · 2^23 + q lies q; half of the lower byte's range ahead, its upper
         * byte is what is left once the lower one is taken as signed. */
        uint32_t q[8];
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float one = __uint_as_float(v[j] << 16);
            float two = __uint_as_float(v[j] & 0xffff0000u);
            sum += one + two;
            q[2 * j] = __float_as_uint(fmaf(one, inverse, 12582912.0f));
            q[2 * j + 1] = __float_as_uint(fmaf(two, inverse, 12582912.0f));
        }
        uint32_t low[2], high[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint32_t *four = q + 4 * j;
            low[j] = __byte_perm(__byte_perm(four[0], four[1], 0x0040),
                                 __byte_perm(four[2], four[3], 0x0040), 0x5410);
            high[j] = __byte_perm(__byte_perm(four[0] + 128, four[1] + 128, 0x0051),
                                  __byte_perm(four[2] + 128, four[3] + 128, 0x0051), 0x5410);
        }

        constexpr int GROUP_LANES = Weights::GROUP / 8;
        if (Weights::NUMBERS > 1)
            for (int reach = GROUP_LANES / 2; reach; reach /= 2)
                sum += __shfl_xor_sync(~0u, sum, reach);
        if (!inside) return;
        int stage = chunk / LANES, within = chunk % LANES; /* block of 32 columns, then lane t */
        uint8_t *at = x() + (size_t)2 * n * columns + stage * Weights::COLUMNS +
                      within % 4 * (Weights::COLUMNS / 4) + within / 4 * 8;
        *(uint2 *)at = {high[0], high[1]}, *(uint2 *)(at + columns) = {low[0], low[1]};
        float *own = numbers() + (n * (columns / Weights::COLUMNS) + stage) * Weights::NUMBERS;
        if (within == 0) own[0] = exponent;
        if (Weights::NUMBERS > 1 && within % GROUP_LANES == 0) own[1 + within / GROUP_LANES] = sum;
    }
};

/* A lane's way through the inputs: what it multiplies, and for codes what its results are scaled
 * with. Of codes, a product has four vectors; from the fifth on there is a second one.
 */
template <class Weights>
struct Reader {
    static constexpr bool CODES = Weights::SCHEME != DENSE;
    static constexpr int SETS = CODES ? 2 : 1;
    const uint8_t *x[SETS];
    const float *numbers[SETS];
    int step[SETS];
    bool second;

    /* nothing: zeros, as many as a stage's columns have bytes. */
    __device__ __forceinline__ Reader(const Inputs<Weights> &from, const uint8_t *nothing) {
        int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        int stages = from.columns / Weights::COLUMNS;
        second = CODES && from.m > 4;
#pragma unroll
        for (int set = 0; set < SETS; set++) {
            int n = CODES ? 4 * set + g / 2 : g, column = CODES ? 8 * set + g : g;
            bool mine = n < from.m;
            size_t bytes = CODES ? from.columns : 2 * from.columns; /* of a column */
            x[set] = (mine ? from.x() + column * bytes : nothing) +
                     t * (CODES ? Weights::COLUMNS / 4 : 8);
            step[set] = mine ? Weights::STEP : 0;
            numbers[set] = from.numbers() +
                           min(4 * set + t, from.m - 1) * stages * Weights::NUMBERS;
        }
    }

    __device__ __forceinline__ void multiply(const Weights &weights, int stage,
                                             Sums<Weights::SCHEME> &sums) const {
        if constexpr (CODES) {
            weights.multiply(x[0] + stage * step[0], numbers[0] + stage * Weights::NUMBERS, sums.y);
            if (second)
                weights.multiply(x[1] + stage * step[1], numbers[1] + stage * Weights::NUMBERS,
                                 sums.y + 2);
        } else {
            weights.multiply(x[0] + stage * step[0], sums);
        }
    }
};

/* A warp's ring of stages in shared memory: filled ahead, emptied in the same order. */
template <class Weights>
struct Ring {
    static constexpr int SIZE = sizeof(Weights), AROUND = Weights::DEPTH * SIZE;
    uint8_t *slots;
    uint64_t policy = read_once();
    int write_at = 0, read_at = 0;

    __device__ __forceinline__ explicit Ring(uint8_t *all) : slots(all + threadIdx.x / 32 * AROUND) {}

    /* Begin: all but one slot are on their way. */
    template <class Next>
    __device__ __forceinline__ void fill(Next next) {
#pragma unroll
        for (int j = 0; j < Weights::DEPTH - 1; j++) push(next());
    }

    /* from: null when there is nothing left; the ring goes round all the same. */
    __device__ __forceinline__ void push(const uint8_t *from) {
        if (from) ((Weights *)(slots + write_at))->copy(from, policy);
        end_of_stage();
        write_at = write_at == AROUND - SIZE ? 0 : write_at + SIZE;
    }

    /* The oldest, once it is there, while the next one is on its way. */
    __device__ __forceinline__ const Weights &pop_and_push(const uint8_t *next) {
        __syncwarp(); /* all lanes are done with the slot that is filled next */
        push(next);
        wait_for_stage<Weights::DEPTH>();
        if (Weights::TABLES) __syncwarp(); /* the scales were copied by other lanes */
        const Weights &oldest = *(const Weights *)(slots + read_at);
        read_at = read_at == AROUND - SIZE ? 0 : read_at + SIZE;
        return oldest;
    }
};
