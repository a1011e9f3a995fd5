/* What PyTorch does slowly on a CPU at small widths: causal attention with rotary embedding, RMS norm and SwiGLU, forward
   and backward, in float32. `kernels.py` compiles this file, and says what each function computes.

   Attention works on tiles of LANES queries (or keys) side by side in one vector, one lane each, and takes the other side
   one row at a time: no sum across lanes is ever needed, no matrix of scores is larger than LANES x length, and only the
   tile on the diagonal does work that the causal mask throws away. */

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int ivec __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

static const vec ZERO = {0};

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

/* exp(x) to 2 units in the last place, of x held between -87 and 88: so 1e-38 in place of less, and never infinity. */
INLINE vec exponential(vec x) {
    x = choose(x < -87.0f, ZERO - 87.0f, x);
    x = choose(x > 88.0f, ZERO + 88.0f, x);
    /* x = k ln 2 + r with |r| <= ln 2 / 2; adding and taking away 1.5 * 2^23 rounds to the nearest integer. */
    vec shifted = x * 1.44269504088896341f + 12582912.0f;
    vec k = shifted - 12582912.0f;
    vec r = x - k * 0.693359375f + k * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = __builtin_convertvector(k, ivec) + 127;
    return p * (vec)(power << 23);
}

INLINE float exponential1(float x) {
    vec v = ZERO + x;
    return exponential(v)[0];
}

/* The natural logarithm of each lane, for positive numbers, by Newton's step on the exponential. */
INLINE vec logarithm(vec x) {
    ivec bits = (ivec)x;
    vec y = (__builtin_convertvector(bits, vec) * 1.1920928955078125e-7f - 127.0f) * 0.693147180559945f;
    for (int step = 0; step < 4; step++) {
        vec e = exponential(y);
        y = y + 2.0f * (x - e) / (x + e);
    }
    return y;
}

/* Rotate `head` numbers by the angles of one position: half c with half c + head / 2. `sign` -1 rotates back. */
INLINE void rotate(const float *x, const float *cosine, const float *sine, float *out, int head, float sign) {
    int half = head / 2;
    for (int c = 0; c < half; c++) {
        float a = x[c], b = x[c + half], s = sign * sine[c];
        out[c] = a * cosine[c] - b * s;
        out[c + half] = b * cosine[c] + a * s;
    }
}

typedef struct {
    int length, width, head, padded;
    const float *cosine, *sine; /* length x head / 2 */
} shape;

/* Rows of one head, rotated: rows x head, and the same with lanes of rows side by side: tiles x head x LANES. */
INLINE void gather(const float *qkv, int part, int h, const shape *s, int rotated, float scale, float *rows, float *tiles) {
    for (int i = 0; i < s->length; i++) {
        const float *x = qkv + (size_t)i * 3 * s->width + part * s->width + h * s->head;
        float *row = rows + (size_t)i * s->head;
        if (rotated) rotate(x, s->cosine + i * (s->head / 2), s->sine + i * (s->head / 2), row, s->head, 1.0f);
        else memcpy(row, x, sizeof(float) * s->head);
        for (int c = 0; c < s->head; c++) row[c] *= scale;
    }
    memset(rows + (size_t)s->length * s->head, 0, sizeof(float) * (s->padded - s->length) * s->head);
    if (!tiles) return;
    for (int i = 0; i < s->padded; i++)
        for (int c = 0; c < s->head; c++)
            tiles[((size_t)(i / LANES) * s->head + c) * LANES + i % LANES] = rows[(size_t)i * s->head + c];
}

INLINE vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

/* Which lanes of the tile that starts at `first` may see key `j`: those at or after it. */
INLINE ivec visible(int first, int j) {
    ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane + first >= j;
}

/* A wide head has more numbers than there are vector registers, and is read from memory again for each row of the other side:
   four rows at a time, so that each reading is used four times. */

/* out[j] = sum over c of tile[c] * rows[j, c], for rows [begin, end). */
INLINE void dots(const vec *tile, const float *rows, const int head, int begin, int end, float *out) {
    int j = begin;
    for (; j + 4 <= end; j += 4) {
        const float *a = rows + (size_t)j * head, *b = a + head, *c = b + head, *d = c + head;
        vec sa = ZERO, sb = ZERO, sc = ZERO, sd = ZERO;
        for (int i = 0; i < head; i++) {
            vec x = tile[i];
            sa += x * a[i];
            sb += x * b[i];
            sc += x * c[i];
            sd += x * d[i];
        }
        store(out + (size_t)j * LANES, sa);
        store(out + (size_t)(j + 1) * LANES, sb);
        store(out + (size_t)(j + 2) * LANES, sc);
        store(out + (size_t)(j + 3) * LANES, sd);
    }
    for (; j < end; j++) {
        vec sum = ZERO;
        for (int i = 0; i < head; i++) sum += tile[i] * rows[(size_t)j * head + i];
        store(out + (size_t)j * LANES, sum);
    }
}

/* result[c] += sum over j of weights[j] * rows[j, c], for rows [begin, end). */
INLINE void add_rows(vec *result, const float *weights, const float *rows, const int head, int begin, int end) {
    int j = begin;
    for (; j + 4 <= end; j += 4) {
        const float *a = rows + (size_t)j * head, *b = a + head, *c = b + head, *d = c + head;
        const float *w = weights + (size_t)j * LANES;
        vec wa = load(w), wb = load(w + LANES), wc = load(w + 2 * LANES), wd = load(w + 3 * LANES);
        for (int i = 0; i < head; i++) {
            vec r = result[i] + wa * a[i];
            r += wb * b[i];
            r += wc * c[i];
            result[i] = r + wd * d[i];
        }
    }
    for (; j < end; j++) {
        vec w = load(weights + (size_t)j * LANES);
        for (int i = 0; i < head; i++) result[i] += w * rows[(size_t)j * head + i];
    }
}

INLINE void forward_head(
    const float *qkv, float *out, float *lse, int h, const shape *s, const int head, const int wide,
    float *scratch) {
    const size_t area = (size_t)s->padded * head;
    float *k = scratch, *v = k + area, *q = v + area, *qt = q + area, *scores = qt + area;
    const float scale = 1.0f / __builtin_sqrtf((float)head);
    gather(qkv, 0, h, s, 1, scale, q, qt);
    gather(qkv, 1, h, s, 1, 1.0f, k, NULL);
    gather(qkv, 2, h, s, 0, 1.0f, v, NULL);
    for (int first = 0; first < s->length; first += LANES) {
        const float *tile = qt + (size_t)first * head;
        vec query[head], result[head];
        for (int c = 0; c < head; c++) {
            query[c] = load(tile + c * LANES);
            result[c] = ZERO;
        }
        int end = first + LANES < s->length ? first + LANES : s->length;
        vec largest = ZERO - 3.0e38f, total = ZERO;
        if (wide) dots(query, k, head, 0, end, scores);
        for (int j = 0; j < end; j++) {
            vec score = ZERO;
            if (wide) score = load(scores + (size_t)j * LANES);
            else
                for (int c = 0; c < head; c++) score += query[c] * k[(size_t)j * head + c];
            if (j > first) score = choose(visible(first, j), score, ZERO - 3.0e38f);
            store(scores + (size_t)j * LANES, score);
            largest = choose(score > largest, score, largest);
        }
        for (int j = 0; j < end; j++) {
            vec p = exponential(load(scores + (size_t)j * LANES) - largest);
            if (j > first) p = choose(visible(first, j), p, ZERO);
            total += p;
            if (wide) store(scores + (size_t)j * LANES, p);
            else
                for (int c = 0; c < head; c++) result[c] += p * v[(size_t)j * head + c];
        }
        if (wide) add_rows(result, scores, v, head, 0, end);
        vec inverse = 1.0f / total;
        store(lse + first, largest + logarithm(total));
        for (int c = 0; c < head; c++) {
            vec r = result[c] * inverse;
            for (int i = first; i < end; i++) out[(size_t)i * s->width + h * head + c] = r[i - first];
        }
    }
}

INLINE void backward_head(
    const float *qkv, const float *out, const float *lse, const float *grad, float *dqkv, int h, const shape *s,
    const int head, const int wide, float *scratch) {
    const size_t area = (size_t)s->padded * head;
    float *q = scratch, *qt = q + area, *k = qt + area, *kt = k + area, *v = kt + area, *vt = v + area, *g = vt + area,
          *gt = g + area, *delta = gt + area, *slopes = delta + s->padded, *shares = slopes + (size_t)LANES * s->padded;
    const float scale = 1.0f / __builtin_sqrtf((float)head);
    gather(qkv, 0, h, s, 1, scale, q, qt);
    gather(qkv, 1, h, s, 1, 1.0f, k, kt);
    gather(qkv, 2, h, s, 0, 1.0f, v, vt);
    for (int i = 0; i < s->padded; i++) {
        float d = 0;
        for (int c = 0; c < head; c++) {
            float here = i < s->length ? grad[(size_t)i * s->width + h * head + c] : 0.0f;
            g[(size_t)i * head + c] = here;
            gt[((size_t)(i / LANES) * head + c) * LANES + i % LANES] = here;
            if (i < s->length) d += here * out[(size_t)i * s->width + h * head + c];
        }
        delta[i] = d;
    }
    float turned[head];
    /* Queries in the lanes: the gradient of the queries. */
    for (int first = 0; first < s->length; first += LANES) {
        const float *tile = qt + (size_t)first * head, *gtile = gt + (size_t)first * head;
        vec query[head], grads[head], result[head], norm = load(lse + first), d = load(delta + first);
        for (int c = 0; c < head; c++) {
            query[c] = load(tile + c * LANES);
            grads[c] = load(gtile + c * LANES);
            result[c] = ZERO;
        }
        int end = first + LANES < s->length ? first + LANES : s->length;
        /* In passes, each of which has its numbers in registers. */
        if (wide) {
            dots(query, k, head, 0, end, slopes);
            dots(grads, v, head, 0, end, shares);
        } else
            for (int j = 0; j < end; j++) {
                vec score = ZERO;
                for (int c = 0; c < head; c++) score += query[c] * k[(size_t)j * head + c];
                store(slopes + (size_t)j * LANES, score);
            }
        for (int j = 0; j < end; j++) {
            vec dp = ZERO;
            if (wide) dp = load(shares + (size_t)j * LANES);
            else
                for (int c = 0; c < head; c++) dp += grads[c] * v[(size_t)j * head + c];
            vec ds = exponential(load(slopes + (size_t)j * LANES) - norm) * (dp - d);
            if (j > first) ds = choose(visible(first, j), ds, ZERO);
            store(slopes + (size_t)j * LANES, ds);
        }
        if (wide) add_rows(result, slopes, k, head, 0, end);
        else
            for (int j = 0; j < end; j++) {
                vec ds = load(slopes + (size_t)j * LANES);
                for (int c = 0; c < head; c++) result[c] += ds * k[(size_t)j * head + c];
            }
        for (int i = first; i < end; i++) {
            float row[head];
            for (int c = 0; c < head; c++) row[c] = result[c][i - first] * scale;
            rotate(row, s->cosine + i * (head / 2), s->sine + i * (head / 2), turned, head, -1.0f);
            memcpy(dqkv + (size_t)i * 3 * s->width + h * head, turned, sizeof(float) * head);
        }
    }
    /* Keys in the lanes: the gradients of the keys and values. */
    for (int first = 0; first < s->length; first += LANES) {
        const float *ktile = kt + (size_t)first * head, *vtile = vt + (size_t)first * head;
        vec key[head], value[head], dk[head], dv[head];
        for (int c = 0; c < head; c++) {
            key[c] = load(ktile + c * LANES);
            value[c] = load(vtile + c * LANES);
            dk[c] = dv[c] = ZERO;
        }
        ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        int end = first + LANES < s->length ? first + LANES : s->length;
        if (wide) {
            dots(key, q, head, first, s->length, shares);
            dots(value, g, head, first, s->length, slopes);
        }
        for (int i = first; i < s->length; i++) {
            vec score = ZERO;
            if (wide) score = load(shares + (size_t)i * LANES);
            else
                for (int c = 0; c < head; c++) score += key[c] * q[(size_t)i * head + c];
            vec p = exponential(score - lse[i]);
            if (i < end) p = choose(lane + first <= i, p, ZERO);
            store(shares + (size_t)i * LANES, p);
        }
        for (int i = first; i < s->length; i++) {
            vec dp = ZERO;
            if (wide) dp = load(slopes + (size_t)i * LANES);
            else
                for (int c = 0; c < head; c++) dp += value[c] * g[(size_t)i * head + c];
            store(slopes + (size_t)i * LANES, load(shares + (size_t)i * LANES) * (dp - delta[i]));
        }
        if (wide) {
            add_rows(dk, slopes, q, head, first, s->length);
            add_rows(dv, shares, g, head, first, s->length);
        } else {
            for (int i = first; i < s->length; i++) {
                vec ds = load(slopes + (size_t)i * LANES);
                for (int c = 0; c < head; c++) dk[c] += ds * q[(size_t)i * head + c];
            }
            for (int i = first; i < s->length; i++) {
                vec p = load(shares + (size_t)i * LANES);
                for (int c = 0; c < head; c++) dv[c] += p * g[(size_t)i * head + c];
            }
        }
        for (int j = first; j < end; j++) {
            float *to = dqkv + (size_t)j * 3 * s->width + h * head, row[head];
            for (int c = 0; c < head; c++) {
                row[c] = dk[c][j - first];
                to[2 * s->width + c] = dv[c][j - first];
            }
            rotate(row, s->cosine + j * (head / 2), s->sine + j * (head / 2), turned, head, -1.0f);
            memcpy(to + s->width, turned, sizeof(float) * head);
        }
    }
}

/* The sizes of a narrow head get code of their own, those of wide ones share theirs; kernels.py refuses others. */
#define FOR_HEADS(DO) DO(2) DO(4) DO(6) DO(8) DO(12) DO(16) DO(24) DO(32)
#define NARROWEST_WIDE 34

static shape shape_of(int length, int heads, int head, const float *cosine, const float *sine) {
    shape s = {length, heads * head, head, (length + LANES - 1) / LANES * LANES, cosine, sine};
    return s;
}

static float *scratch_of(const shape *s, int areas) {
    size_t size = sizeof(float) * ((size_t)areas * s->padded * s->head + (size_t)(2 * LANES + 1) * s->padded);
    return aligned_alloc(64, (size + 63) / 64 * 64);
}

/* Heads [begin, end) of all heads of all sequences. qkv and dqkv are sequences x length x 3 width, out and grad sequences x
   length x width, lse heads of all sequences x padded length. Returns 0, or 1 where there is no memory. */
int attention_forward(
    const float *qkv, const float *cosine, const float *sine, float *out, float *lse, int length, int heads, int head,
    int begin, int end) {
    shape s = shape_of(length, heads, head, cosine, sine);
    float *scratch = scratch_of(&s, 4);
    if (!scratch) return 1;
    for (int n = begin; n < end; n++) {
        const float *x = qkv + (size_t)(n / heads) * length * 3 * s.width;
        float *o = out + (size_t)(n / heads) * length * s.width, *l = lse + (size_t)n * s.padded;
#define FORWARD(D) if (head == D) forward_head(x, o, l, n % heads, &s, D, 0, scratch);
        FOR_HEADS(FORWARD)
        if (head >= NARROWEST_WIDE) forward_head(x, o, l, n % heads, &s, head, 1, scratch);
    }
    free(scratch);
    return 0;
}

int attention_backward(
    const float *qkv, const float *cosine, const float *sine, const float *out, const float *lse, const float *grad,
    float *dqkv, int length, int heads, int head, int begin, int end) {
    shape s = shape_of(length, heads, head, cosine, sine);
    float *scratch = scratch_of(&s, 8);
    if (!scratch) return 1;
    for (int n = begin; n < end; n++) {
        size_t at = (size_t)(n / heads) * length;
        const float *l = lse + (size_t)n * s.padded;
#define BACKWARD(D) \
    if (head == D) \
        backward_head( \
            qkv + at * 3 * s.width, out + at * s.width, l, grad + at * s.width, dqkv + at * 3 * s.width, n % heads, &s, D, 0, \
            scratch);
        FOR_HEADS(BACKWARD)
        if (head >= NARROWEST_WIDE)
            backward_head(
                qkv + at * 3 * s.width, out + at * s.width, l, grad + at * s.width, dqkv + at * 3 * s.width, n % heads, &s, head,
                1, scratch);
    }
    free(scratch);
    return 0;
}

/* exp of every number of columns [begin, end) of a matrix with `columns` columns, in place, and the sum of each column. */
void exponential_sums(float *restrict x, float *restrict sums, int rows, int columns, int begin, int end) {
    for (int c = begin; c < end; c++) sums[c] = 0;
    for (int i = 0; i < rows; i++) {
        float *row = x + (size_t)i * columns;
        int c = begin;
        for (; c + LANES <= end; c += LANES) {
            vec e = exponential(load(row + c));
            store(row + c, e);
            store(sums + c, load(sums + c) + e);
        }
        for (; c < end; c++) sums[c] += row[c] = exponential1(row[c]);
    }
}

/* The sum of a[c] * b[c] * w[c], or of a[c] * b[c] without w. */
INLINE float dot(const float *a, const float *b, const float *w, int count) {
    vec sums = ZERO;
    int c = 0;
    for (; c + LANES <= count; c += LANES) sums += load(a + c) * load(b + c) * (w ? load(w + c) : ZERO + 1.0f);
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += sums[l];
    for (; c < count; c++) sum += a[c] * b[c] * (w ? w[c] : 1.0f);
    return sum;
}

/* out = x / rms(x) * weight, rows [begin, end); `inverse` keeps 1 / rms(x). */
void rms_norm_forward(
    const float *restrict x, const float *restrict weight, float *restrict out, float *restrict inverse, int width,
    float epsilon, int begin, int end) {
    for (int i = begin; i < end; i++) {
        const float *row = x + (size_t)i * width;
        float scale = 1.0f / __builtin_sqrtf(dot(row, row, NULL, width) / width + epsilon);
        inverse[i] = scale;
        for (int c = 0; c < width; c++) out[(size_t)i * width + c] = row[c] * scale * weight[c];
    }
}

/* Of rows [begin, end): `dx` += the gradient of x, and `dweight` += that of the weight. */
void rms_norm_backward(
    const float *restrict x, const float *restrict weight, const float *restrict inverse, const float *restrict grad,
    float *restrict dx, float *restrict dweight, int width, int begin, int end) {
    for (int i = begin; i < end; i++) {
        const float *row = x + (size_t)i * width, *g = grad + (size_t)i * width;
        float scale = inverse[i], along = dot(g, row, weight, width) * scale * scale / width;
        for (int c = 0; c < width; c++) {
            dx[(size_t)i * width + c] += scale * (g[c] * weight[c] - along * row[c]);
            dweight[c] += g[c] * row[c] * scale;
        }
    }
}

/* out = up * silu(gate) for rows [up, gate] of 2 half numbers each. */
void swiglu_forward(const float *restrict x, float *restrict out, int half, int begin, int end) {
    for (int i = begin; i < end; i++) {
        const float *up = x + (size_t)i * 2 * half, *gate = up + half;
        float *to = out + (size_t)i * half;
        int c = 0;
        for (; c + LANES <= half; c += LANES) {
            vec g = load(gate + c);
            store(to + c, load(up + c) * g / (1.0f + exponential(-g)));
        }
        for (; c < half; c++) to[c] = up[c] * gate[c] / (1.0f + exponential1(-gate[c]));
    }
}

/* The gradient of x in place of x, and the forward's output again. */
void swiglu_backward(float *restrict x, const float *restrict grad, float *restrict out, int half, int begin, int end) {
    for (int i = begin; i < end; i++) {
        float *up = x + (size_t)i * 2 * half, *gate = up + half, *to = out + (size_t)i * half;
        const float *d = grad + (size_t)i * half;
        int c = 0;
        for (; c + LANES <= half; c += LANES) {
            vec u = load(up + c), g = load(gate + c), dy = load(d + c), open = 1.0f / (1.0f + exponential(-g));
            store(to + c, u * g * open);
            store(up + c, dy * g * open);
            store(gate + c, dy * u * open * (1.0f + g * (1.0f - open)));
        }
        for (; c < half; c++) {
            float u = up[c], g = gate[c], open = 1.0f / (1.0f + exponential1(-g));
            to[c] = u * g * open;
            up[c] = d[c] * g * open;
            gate[c] = d[c] * u * open * (1.0f + g * (1.0f - open));
        }
    }
}
