/* hadamard in portable C: stage by stage. */
#include "impl.h"

static int finish(float* x, int64_t length, float scale) {
    float seen = 0;
    for (int64_t k = 0; k < length; k++) {
        x[k] *= scale;
        seen += x[k] * 0.0f; /* NaN where it is Inf or NaN */
    }
    return seen != 0;
}

int fc_hadamard_near_ref(float* x, int64_t length, int64_t block, float scale) {
    for (int64_t h = 1; h < block; h *= 2)
        for (int64_t at = 0; at < length; at += 2 * h)
            for (int64_t k = at; k < at + h; k++) {
                const float a = x[k], b = x[k + h];
                x[k] = a + b;
                x[k + h] = a - b;
            }
    return scale != 0 && finish(x, length, scale);
}

int fc_hadamard_far_ref(float* x, int64_t stride, int rows, int64_t width, float scale) {
    for (int h = 1; h < rows; h *= 2)
        for (int r = 0; r < rows; r++)
            for (int64_t k = 0; k < width && !(r & h); k++) {
                const float a = x[r * stride + k], b = x[(r + h) * stride + k];
                x[r * stride + k] = a + b;
                x[(r + h) * stride + k] = a - b;
            }
    int bad = 0;
    for (int r = 0; r < rows && scale != 0; r++) bad |= finish(x + r * stride, width, scale);
    return bad;
}
