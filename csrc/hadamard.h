/* The passes of hadamard over vectors of one ISA, which defines before it includes this file:
 * vec (floats; +, - and * work on it), LANES, LOAD(p), STORE(p, v), ALL(f) (f in every lane), WITHIN(v) (the stages
 * 1, 2, ... LANES / 2 inside a vector), NAME(pass).
 * Every output of a stage comes from two inputs by one addition or subtraction, so passes may be cut as caches like it;
 * only the order of stages matters, and it is always the ascending one. */
enum { MOST = 16 }; /* vectors in registers */

INLINE void butterflies(vec* v, int count) {
#pragma GCC unroll 4
    for (int h = 1; h < count; h *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < count; i++)
            if (!(i & h)) {
                const vec sum = v[i] + v[i + h];
                v[i + h] = v[i] - v[i + h];
                v[i] = sum;
            }
}

INLINE int any_not_finite(vec seen) {
    float lanes[LANES], sum = 0;
    STORE(lanes, seen);
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum != 0; /* zeros, or NaN */
}

/* `count` vectors a time, `stride` apart, over `width` columns; `within`: the stages inside vectors come first. */
INLINE int pass(float* x, int64_t stride, int64_t width, int64_t step, float scale, int count, int within, int last) {
    const vec by = ALL(scale), zero = ALL(0.0f);
    vec seen = zero, v[MOST];
    for (int64_t c = 0; c < width; c += step) {
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) {
            v[i] = LOAD(x + c + i * stride);
            if (within) v[i] = WITHIN(v[i]);
        }
        butterflies(v, count);
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) {
            if (last) {
                v[i] = v[i] * by;
                seen = seen + v[i] * zero; /* NaN where the product is Inf or NaN */
            }
            STORE(x + c + i * stride, v[i]);
        }
    }
    return last ? any_not_finite(seen) : 0;
}

#define CASES(count, step, within)                                            \
    return scale != 0 ? pass(x, stride, width, step, scale, count, within, 1) \
                      : pass(x, stride, width, step, scale, count, within, 0)

/* Stages 1 to length / 2 of each `length` columns, LANES to MOST * LANES, contiguous. */
static int low(float* x, int64_t width, int64_t length, float scale) {
    const int64_t stride = LANES;
    switch (length / LANES) {
        case 1:
            CASES(1, LANES, 1);
        case 2:
            CASES(2, 2 * LANES, 1);
        case 4:
            CASES(4, 4 * LANES, 1);
        case 8:
            CASES(8, 8 * LANES, 1);
        default:
            CASES(16, 16 * LANES, 1);
    }
}

int NAME(far)(float* x, int64_t stride, int rows, int64_t width, float scale) {
    switch (rows) {
        case 2:
            CASES(2, LANES, 0);
        case 4:
            CASES(4, LANES, 0);
        default:
            CASES(8, LANES, 0);
    }
}

int NAME(near)(float* x, int64_t length, int64_t block, float scale) {
    if (block < LANES) return fc_hadamard_near_ref(x, length, block, scale);
    int64_t stride = fc_min(block, MOST * LANES);
    int bad = low(x, length, stride, stride == block ? scale : 0);
    for (int rows; stride < block; stride *= rows) {
        rows = (int)fc_min(FC_HADAMARD_ROWS, block / stride);
        for (int64_t at = 0; at < length; at += stride * rows)
            bad |= NAME(far)(x + at, stride, rows, stride, stride * rows == block ? scale : 0);
    }
    return bad;
}
