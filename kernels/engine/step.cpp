/* The whole decoder as one call: token ids in, the next tokens or their logits out.
 *
 * A call takes any number of tokens: one (decoding), a few (verifying a draft), many (a prompt).
 * Activations are float32 between the matrices. Python makes a decoder once with pointers to packed
 * weights and to the key/value cache; nothing is allocated afterwards.
 */
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>

#include "gemv.h"
#include "mix.h"
#include "team.h"

namespace slip {

constexpr int ROWS = 32;  /* tokens that go through the layers together */
constexpr int LANES = 16; /* partial sums, so that the compiler may use vectors of any width */

struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *input_norm, *attention_norm, *query_norm, *key_norm, *mlp_norm, *output_norm;
    const float *cos, *sin;          /* [max_context, head_dim]; the sine carries the sign */
    uint16_t *key, *value;           /* see mix.h */
    int window;                      /* how far back a query sees; 0 for all */
};

/* What a step's time is told apart by; `native.py` has the names. */
enum Component { QKV, ATTENTION, ATTENTION_OUT, GATE_UP, DOWN, HEAD, NORMS, COMPONENTS };

static float sum_of(const float *lanes) {
    float total = 0.0f;
    for (int i = 0; i < LANES; i++) total += lanes[i];
    return total;
}

/* normed = x / rms(x) · weight; n is a multiple of LANES. */
static void rms_norm(const float *x, const float *weight, float *normed, int n, float eps) {
    float lanes[LANES] = {};
    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += x[i + j] * x[i + j];
    float scale = 1.0f / std::sqrt(sum_of(lanes) / (float)n + eps);
    for (int i = 0; i < n; i++) normed[i] = x[i] * scale * weight[i];
}

static void rotate(float *x, const float *cos, const float *sin, int head_dim) {
    int half = head_dim / 2;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

struct Decoder {
    int hidden, heads, kv_heads, head_dim, feed, vocab, max_context, path;
    bool gelu;
    float eps, attention_scale, embedding_scale;
    const uint16_t *embedding; /* [vocab, hidden], bfloat16 */
    const float *norm;
    Matrix head;
    std::vector<Layer> layers;
    std::unique_ptr<Team> team;

    std::vector<float> x, delta, normed, qkv, mixed, feeds, scores;
    std::vector<uint16_t> half, shares;
    std::vector<int8_t> bytes;
    std::vector<float> scales, sums;
    std::vector<Inputs> inputs;
    std::vector<float> best;
    std::vector<int> best_at;
    double *seconds = nullptr; /* [COMPONENTS] while a profile is taken */
    std::chrono::steady_clock::time_point mark;

    /* The time since the last lap was `component`'s; the caller's thread keeps the clock. */
    void lap(int rank, int component) {
        if (rank || !seconds) return;
        auto now = std::chrono::steady_clock::now();
        seconds[component] += std::chrono::duration<double>(now - mark).count();
        mark = now;
    }

    void allocate() {
        int widest = std::max({hidden, heads * head_dim, feed});
        int blocks = (widest + 31) / 32;
        x.assign(ROWS * hidden, 0.0f);
        delta.assign(ROWS * hidden, 0.0f);
        normed.assign(ROWS * hidden, 0.0f);
        qkv.assign(ROWS * (heads + 2 * kv_heads) * head_dim, 0.0f);
        mixed.assign(ROWS * heads * head_dim, 0.0f);
        feeds.assign(ROWS * 2 * feed, 0.0f);
        scores.assign((size_t)team->size * padded(max_context), 0.0f);
        shares.assign((size_t)team->size * (padded(max_context) + head_dim), 0);
        half.assign(ROWS * blocks * 32, 0);
        bytes.assign(ROWS * blocks * 32, 0);
        scales.assign(ROWS * blocks, 0.0f);
        sums.assign(ROWS * blocks, 0.0f);
        for (int m = 0; m < ROWS; m++)
            inputs.push_back({half.data() + m * blocks * 32, bytes.data() + m * blocks * 32,
                              scales.data() + m * blocks, sums.data() + m * blocks});
        best.assign(team->size * ROWS, 0.0f);
        best_at.assign(team->size * ROWS, 0);
    }

    /* Tiles [first, last) of y[m] = W inputs[m]; `keep(tile, m, y)` takes 16 numbers. */
    template <class Keep>
    void multiply(const Matrix &w, int count, int first, int last, Keep keep) {
        alignas(64) float y[8][16];
        for (int tile = first; tile < last; tile++)
            for (int m = 0; m < count; m += 8) {
                int some = std::min(8, count - m);
                multiply_tile(w, path, tile, inputs.data() + m, some, y);
                for (int i = 0; i < some; i++) keep(tile, m + i, y[i]);
            }
    }

    void multiply_into(const Matrix &w, int count, int rank, float *y, int stride) {
        multiply(w, count, w.tiles * rank / team->size, w.tiles * (rank + 1) / team->size,
                 [&](int tile, int m, const float *part) {
                     int rows = std::min(16, w.rows - tile * 16);
                     memcpy(y + (size_t)m * stride + tile * 16, part, 4 * rows);
                 });
    }

    /* Normalise, rotate and store all keys and values; then each query attends. */
    void attend(const Layer &layer, int count, int position, int rank) {
        int stride = (heads + 2 * kv_heads) * head_dim, group = heads / kv_heads;
        Cache cache = {layer.key, layer.value, max_context, head_dim};
        for (int k = rank; k < kv_heads; k += team->size) {
            for (int m = 0; m < count; m++) {
                float *key = qkv.data() + (size_t)m * stride + (heads + k) * head_dim;
                const float *value = key + kv_heads * head_dim;
                if (layer.key_norm) rms_norm(key, layer.key_norm, key, head_dim, eps);
                size_t at = (size_t)(position + m) * head_dim;
                rotate(key, layer.cos + at, layer.sin + at, head_dim);
                cache.store(k, position + m, key, value);
            }
        }
        team->meet();
        float *score = scores.data() + (size_t)rank * padded(max_context);
        uint16_t *share = shares.data() + (size_t)rank * (padded(max_context) + head_dim);
        for (int item = rank; item < count * heads; item += team->size) {
            int m = item / heads, h = item % heads, newest = position + m;
            float *query = qkv.data() + (size_t)m * stride + h * head_dim;
            size_t at = (size_t)newest * head_dim;
            if (layer.query_norm) rms_norm(query, layer.query_norm, query, head_dim, eps);
            rotate(query, layer.cos + at, layer.sin + at, head_dim);
            for (int i = 0; i < head_dim; i++) query[i] *= attention_scale;
            int oldest = layer.window ? std::max(0, newest + 1 - layer.window) : 0;
            mix(cache, path, h / group, query, oldest, newest, score, share,
                mixed.data() + (size_t)m * heads * head_dim + h * head_dim);
        }
    }

    /* x += delta (through its norm, if it has one); then the inputs of the next matrix. */
    void add_and_prepare(int count, const float *delta_norm, bool add, const float *weight,
                         const Matrix &next, int rank) {
        for (int m = rank; m < count; m += team->size) {
            float *row = x.data() + m * hidden, *change = delta.data() + m * hidden;
            float *ready = normed.data() + m * hidden;
            if (add) {
                if (delta_norm) rms_norm(change, delta_norm, change, hidden, eps);
                for (int i = 0; i < hidden; i++) row[i] += change[i];
            }
            rms_norm(row, weight, ready, hidden, eps);
            prepare(next, ready, inputs[m], 0, next.blocks);
        }
        team->meet();
    }

    void feed_forward(const Layer &layer, int count, int rank) {
        /* Tiles of gate and of up alternate, so that a thread has both halves of its columns. */
        int pairs = layer.gate_up.tiles / 2;
        int first = 2 * (pairs * rank / team->size), last = 2 * (pairs * (rank + 1) / team->size);
        bool with_gelu = gelu;
        multiply(layer.gate_up, count, first, last, [&](int tile, int m, const float *part) {
            float *row = feeds.data() + (size_t)m * 2 * feed;
            if (tile % 2 == 0) {
                memcpy(row + feed + tile / 2 * 16, part, 64);
                return;
            }
            const float *gate = row + feed + tile / 2 * 16;
            float *out = row + tile / 2 * 16;
            for (int i = 0; i < 16; i++) {
                float g = gate[i];
                float inner = with_gelu ? 1.5957691216f * (g + 0.044715f * g * g * g) : g;
                out[i] = part[i] * g / (1.0f + fast_exp(-inner));
            }
        });
        team->meet();
        lap(rank, GATE_UP);
        for (int m = rank; m < count; m += team->size)
            prepare(layer.down, feeds.data() + (size_t)m * 2 * feed, inputs[m], 0,
                    layer.down.blocks);
        team->meet();
        lap(rank, NORMS);
        multiply_into(layer.down, count, rank, delta.data(), hidden);
        team->meet();
        lap(rank, DOWN);
    }

    void layers_of(const int *tokens, int count, int position, int rank) {
        for (int m = rank; m < count; m += team->size) {
            const uint16_t *row = embedding + (size_t)tokens[m] * hidden;
            for (int i = 0; i < hidden; i++) x[m * hidden + i] = up(row[i]) * embedding_scale;
        }
        team->meet();
        const float *last_norm = nullptr;
        bool add = false;
        for (const Layer &layer : layers) {
            add_and_prepare(count, last_norm, add, layer.input_norm, layer.qkv, rank);
            lap(rank, NORMS);
            multiply_into(layer.qkv, count, rank, qkv.data(), (heads + 2 * kv_heads) * head_dim);
            team->meet();
            lap(rank, QKV);
            attend(layer, count, position, rank);
            team->meet();
            lap(rank, ATTENTION);
            for (int m = rank; m < count; m += team->size)
                prepare(layer.out, mixed.data() + (size_t)m * heads * head_dim, inputs[m], 0,
                        layer.out.blocks);
            team->meet();
            lap(rank, NORMS);
            multiply_into(layer.out, count, rank, delta.data(), hidden);
            team->meet();
            lap(rank, ATTENTION_OUT);
            add_and_prepare(count, layer.attention_norm, true, layer.mlp_norm, layer.gate_up, rank);
            lap(rank, NORMS);
            feed_forward(layer, count, rank);
            last_norm = layer.output_norm, add = true;
        }
        add_and_prepare(count, last_norm, add, norm, head, rank);
        lap(rank, NORMS);
    }

    /* The head on rows [skip, count): logits if asked for, and always the best token of each. */
    void choose(int count, int skip, float *out, int *choices, int rank) {
        float *top = best.data() + rank * ROWS;
        int *top_at = best_at.data() + rank * ROWS;
        for (int m = skip; m < count; m++) top[m] = -std::numeric_limits<float>::infinity();
        int first = head.tiles * rank / team->size, last = head.tiles * (rank + 1) / team->size;
        alignas(64) float y[8][16];
        for (int tile = first; tile < last; tile++)
            for (int m = skip; m < count; m += 8) {
                int some = std::min(8, count - m), rows = std::min(16, vocab - tile * 16);
                multiply_tile(head, path, tile, inputs.data() + m, some, y);
                for (int i = 0; i < some; i++) {
                    if (out)
                        memcpy(out + (size_t)(m + i - skip) * vocab + tile * 16, y[i], 4 * rows);
                    for (int r = 0; r < rows; r++)
                        if (y[i][r] > top[m + i]) top[m + i] = y[i][r], top_at[m + i] = tile * 16 + r;
                }
            }
        team->meet();
        if (rank) return;
        for (int m = skip; m < count; m++) {
            int winner = 0;
            for (int other = 1; other < team->size; other++)
                if (best[other * ROWS + m] > best[winner * ROWS + m]) winner = other;
            choices[m - skip] = best_at[winner * ROWS + m];
        }
    }

    /* Append tokens at `position`. `all`: answer for each token instead of the last. */
    void forward(const int *tokens, int count, int position, bool all, float *out, int *choices) {
        team->run([&](int rank) {
            for (int done = 0; done < count; done += ROWS) {
                int some = std::min(ROWS, count - done);
                layers_of(tokens + done, some, position + done, rank);
                bool answers = all || done + some == count;
                int skip = all ? 0 : some - 1;
                if (answers)
                    choose(some, skip, out ? out + (size_t)(all ? done : 0) * vocab : nullptr,
                           choices + (all ? done : 0), rank);
                team->meet();
            }
        });
    }

    /* Feed each chosen token back, `count` times. */
    void decode(int token, int position, int count, int *out) {
        team->run([&](int rank) {
            for (int i = 0; i < count; i++) {
                layers_of(i ? out + i - 1 : &token, 1, position + i, rank);
                choose(1, 0, nullptr, out + i, rank);
                team->meet();
                lap(rank, HEAD);
            }
        });
    }
};

}  // namespace slip

using namespace slip;

extern "C" {

/* What Python hands over for one matrix; see `Matrix`. */
struct MatrixSpec {
    const uint8_t *data;
    const float *scale, *bias;
    int scheme, tiles, rows, blocks, group, int8_inputs;
};

struct LayerSpec {
    MatrixSpec qkv, out, gate_up, down;
    const float *input_norm, *attention_norm, *query_norm, *key_norm, *mlp_norm, *output_norm;
    const float *cos, *sin;
    uint16_t *key, *value;
    int window;
};

struct DecoderSpec {
    int hidden, heads, kv_heads, head_dim, feed, vocab, max_context, gelu, threads, portable;
    float eps, attention_scale, embedding_scale;
    const uint16_t *embedding;
    const float *norm;
    MatrixSpec head;
    int num_layers;
    const LayerSpec *layers;
};

static Matrix matrix_of(const MatrixSpec &spec) {
    Matrix m;
    m.data = spec.data, m.scale = spec.scale, m.bias = spec.bias, m.scheme = spec.scheme;
    m.tiles = spec.tiles, m.rows = spec.rows, m.blocks = spec.blocks, m.group = spec.group;
    m.int8_inputs = spec.int8_inputs != 0;
    return m;
}

void *decoder_new(const DecoderSpec *spec) {
    auto *d = new Decoder();
    d->hidden = spec->hidden, d->heads = spec->heads, d->kv_heads = spec->kv_heads;
    d->head_dim = spec->head_dim, d->feed = spec->feed, d->vocab = spec->vocab;
    d->max_context = spec->max_context, d->gelu = spec->gelu != 0;
    d->path = spec->portable || !has_avx512() ? PORTABLE : AVX512;
    d->eps = spec->eps, d->attention_scale = spec->attention_scale;
    d->embedding_scale = spec->embedding_scale;
    d->embedding = spec->embedding, d->norm = spec->norm, d->head = matrix_of(spec->head);
    for (int i = 0; i < spec->num_layers; i++) {
        const LayerSpec &l = spec->layers[i];
        d->layers.push_back({matrix_of(l.qkv), matrix_of(l.out), matrix_of(l.gate_up),
                             matrix_of(l.down), l.input_norm, l.attention_norm, l.query_norm,
                             l.key_norm, l.mlp_norm, l.output_norm, l.cos, l.sin, l.key, l.value,
                             l.window});
    }
    d->team = std::make_unique<Team>(spec->threads);
    d->allocate();
    return d;
}

void decoder_free(void *decoder) { delete (Decoder *)decoder; }

int decoder_path(void *decoder) { return ((Decoder *)decoder)->path; }

void decoder_forward(void *decoder, const int *tokens, int count, int position, int all,
                     float *logits, int *choices) {
    ((Decoder *)decoder)->forward(tokens, count, position, all != 0, logits, choices);
}

void decoder_decode(void *decoder, int token, int position, int count, int *out) {
    ((Decoder *)decoder)->decode(token, position, count, out);
}

/* Decode, and add up each component's time in `seconds` [COMPONENTS]. */
void decoder_profile(void *decoder, int token, int position, int count, int *out,
                     double *seconds) {
    auto *d = (Decoder *)decoder;
    d->seconds = seconds, d->mark = std::chrono::steady_clock::now();
    d->decode(token, position, count, out);
    d->seconds = nullptr;
}

/* y[m] = W x[m], for tests and for profiles; x [count, blocks * 32], y [count, rows]. */
void matrix_multiply(const MatrixSpec *spec, const float *x, int count, int portable, float *y) {
    Matrix w = matrix_of(*spec);
    int path = portable || !has_avx512() ? PORTABLE : AVX512, width = w.blocks * 32;
    std::vector<uint16_t> half(width);
    std::vector<int8_t> bytes(width);
    std::vector<float> scale(w.blocks), sum(w.blocks);
    Inputs inputs = {half.data(), bytes.data(), scale.data(), sum.data()};
    float part[1][16];
    for (int m = 0; m < count; m++) {
        prepare(w, x + (size_t)m * width, inputs, 0, w.blocks);
        for (int tile = 0; tile < w.tiles; tile++) {
            multiply_tile(w, path, tile, &inputs, 1, part);
            for (int r = 0; r < 16 && tile * 16 + r < w.rows; r++)
                y[(size_t)m * w.rows + tile * 16 + r] = part[0][r];
        }
    }
}
}
