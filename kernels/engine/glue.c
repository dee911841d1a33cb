/* What lies between the matrix products of one decoded token, in bfloat16, one call each.
 *
 * Eager PyTorch spends more time starting these small operations than doing them. Each function
 * rounds to bfloat16 where the PyTorch path does.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

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

/* x += delta (if there is one), then normed = x / rms(x) * weight; all of length n. */
void add_norm(uint16_t *restrict x, const uint16_t *restrict delta,
              const uint16_t *restrict weight, uint16_t *restrict normed, int n, float eps) {
    float sum = 0.0f;
    if (delta)
        for (int i = 0; i < n; i++) x[i] = down(up(x[i]) + up(delta[i]));
    for (int i = 0; i < n; i++) {
        float value = up(x[i]);
        sum += value * value;
    }
    float scale = 1.0f / sqrtf(sum / n + eps);
    for (int i = 0; i < n; i++) normed[i] = down(up(x[i]) * scale * up(weight[i]));
}

/* out = silu(gate) * up, gate and up side by side in gate_up; all of length n. */
void silu_mul(const uint16_t *restrict gate_up, uint16_t *restrict out, int n) {
    for (int i = 0; i < n; i++) {
        float gate = up(gate_up[i]);
        out[i] = down(up(down(gate / (1.0f + expf(-gate)))) * up(gate_up[n + i]));
    }
}

static void rotate(const uint16_t *restrict x, const uint16_t *restrict cos,
                   const uint16_t *restrict sin, uint16_t *restrict out, int head_dim) {
    int half = head_dim / 2; /* the sine table carries the sign of the first half */
    for (int i = 0; i < half; i++) {
        float a = up(x[i]), b = up(x[i + half]);
        out[i] = down(up(down(a * up(cos[i]))) + up(down(b * up(sin[i]))));
        out[i + half] = down(up(down(b * up(cos[i + half]))) + up(down(a * up(sin[i + half]))));
    }
}

/* Rotate queries and keys of one token, write key and value into the cache, attend to all of it.
 * qkv [heads + 2 kv_heads, head_dim]; key, value [kv_heads, stride, head_dim];
 * out [heads, head_dim]; scores is scratch of length position + 1. */
void attend(const uint16_t *qkv, const uint16_t *cos, const uint16_t *sin, uint16_t *key,
            uint16_t *value, uint16_t *out, float *restrict scores, int position, int heads,
            int kv_heads, int head_dim, int stride, float scale) {
    uint16_t rotated[512];
    float query[512], mixed[512];
    for (int k = 0; k < kv_heads; k++) {
        size_t row = ((size_t)k * stride + position) * head_dim;
        rotate(qkv + (heads + k) * head_dim, cos, sin, key + row, head_dim);
        memcpy(value + row, qkv + (heads + kv_heads + k) * head_dim, 2 * head_dim);
    }
    for (int h = 0; h < heads; h++) {
        size_t base = (size_t)(h / (heads / kv_heads)) * stride * head_dim;
        rotate(qkv + h * head_dim, cos, sin, rotated, head_dim);
        for (int i = 0; i < head_dim; i++) query[i] = up(rotated[i]) * scale, mixed[i] = 0.0f;
        float most = -INFINITY, total = 0.0f;
        for (int t = 0; t <= position; t++) {
            const uint16_t *row = key + base + (size_t)t * head_dim;
            float dot = 0.0f;
            for (int i = 0; i < head_dim; i++) dot += query[i] * up(row[i]);
            scores[t] = dot;
            most = dot > most ? dot : most;
        }
        for (int t = 0; t <= position; t++) total += scores[t] = expf(scores[t] - most);
        for (int t = 0; t <= position; t++) {
            const uint16_t *row = value + base + (size_t)t * head_dim;
            float share = scores[t] / total;
            for (int i = 0; i < head_dim; i++) mixed[i] += share * up(row[i]);
        }
        for (int i = 0; i < head_dim; i++) out[h * head_dim + i] = down(mixed[i]);
    }
}
