/* Where columns of a row lie: in place when one piece holds them as they are, else copied or decoded into scratch. */
#include "impl.h"

/* Elements first to first + length of piece k of row i, which is encoded, as fp32. */
static void decode(const fc_kernels* kernels, const fc_rows* x, int64_t i, int64_t k, int64_t first, int64_t length,
                   float* out) {
    const int64_t at = k * x->rows + i, pieces = x->segments * x->rows;
    const fc_dtype format = (fc_dtype)x->encoding->formats[at];
    const void* const* table = x->encoding->scales + at;
    const void* const scales[3] = {table[0], table[pieces], table[2 * pieces]};
    if (format >= FC_INT8) {
        kernels->decode[format - FC_INT8](x->pointers[at], scales, first, length, out);
    } else {
        const char* from = (const char*)x->pointers[at] + first * fc_itemsize(format);
        kernels->to_f32[format](from, length, out);
    }
}

static const void* gather_encoded(const fc_kernels* kernels, const fc_rows* x, int64_t i, int64_t start, int64_t length,
                                  float* scratch) {
    int64_t k = fc_last_start(x->starts, x->segments, start);
    const int64_t first = x->encoding->origins[k * x->rows + i] + start - x->starts[k];
    if (x->encoding->formats[k * x->rows + i] == FC_F32 && x->starts[k + 1] - start >= length)
        return (const char*)x->pointers[k * x->rows + i] + first * (int64_t)sizeof(float);
    for (float* to = scratch; length > 0; k++) {
        const int64_t taken = fc_min(x->starts[k + 1] - start, length);
        decode(kernels, x, i, k, x->encoding->origins[k * x->rows + i] + start - x->starts[k], taken, to);
        to += taken;
        start += taken;
        length -= taken;
    }
    return scratch;
}

const void* fc_gather(const fc_kernels* kernels, const fc_rows* x, int64_t i, int64_t start, int64_t length,
                      void* scratch) {
    if (x->encoding) return gather_encoded(kernels, x, i, start, length, scratch);
    const int size = fc_itemsize(x->dtype);
    int64_t k = fc_last_start(x->starts, x->segments, start);
    const char* piece = (const char*)x->pointers[k * x->rows + i] + (start - x->starts[k]) * size;
    if (x->starts[k + 1] - start >= length) return piece;
    for (char* to = scratch; length > 0; k++) {
        const int64_t taken = fc_min(x->starts[k + 1] - start, length);
        const char* from = (const char*)x->pointers[k * x->rows + i] + (start - x->starts[k]) * size;
        memcpy(to, from, (size_t)(taken * size));
        to += taken * size;
        start += taken;
        length -= taken;
    }
    return scratch;
}
