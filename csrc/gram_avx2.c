/* gram with AVX2 and FMA. Rows are packed one after the other, and products are dot products along the columns, of
 * three rows by four, with a chain in each lane. */
#include "gram_rows.h"

enum {
    ROWS = 3,
    COLUMNS = 4, /* 12 chains: two multiply-adds a cycle, of four cycles each, need 8 */
    GROUP = 16,  /* rows that stay in the first-level cache as a tile's columns */
    APART = LANES
};

INLINE int64_t place(int64_t row) { return row * FC_GRAM_BLOCK; }

PACK(f32, FC_F32, avx2)
PACK(f16, FC_F16, avx2)
PACK(bf16, FC_BF16, avx2)

/* The sums of four vectors' lanes. */
INLINE __m128 lanes_summed(const __m256 x[4]) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

/* sum[r][c] += row r of a times row c of b (times their scales) over the first `length` columns of both. */
INLINE void tile(const float* a, const float* b, int64_t length, double* sum, int64_t stride, const double* row_scale,
                 const double* column_scale) {
    __m256 dot[ROWS][COLUMNS];
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) dot[r][c] = _mm256_setzero_ps();
#pragma GCC unroll 2
    for (int64_t k = 0; k < length; k += LANES) {
        __m256 row[ROWS];
        for (int r = 0; r < ROWS; r++) row[r] = _mm256_load_ps(a + place(r) + k);
        for (int c = 0; c < COLUMNS; c++) {
            const __m256 column = _mm256_load_ps(b + place(c) + k);
            for (int r = 0; r < ROWS; r++) dot[r][c] = _mm256_fmadd_ps(row[r], column, dot[r][c]);
        }
    }
    for (int r = 0; r < ROWS; r++, sum += stride) {
        __m256d found = _mm256_cvtps_pd(lanes_summed(dot[r]));
        if (row_scale)
            found = _mm256_mul_pd(found, _mm256_mul_pd(_mm256_set1_pd(row_scale[r]), _mm256_loadu_pd(column_scale)));
        _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), found));
    }
}

void fc_gram_products_avx2(const float* panel, int64_t rows, int64_t first, int64_t length, double* sum, double* scale,
                           int rescaled, fc_ahead* next) {
    if (first >= rows) return;
    const int64_t stride = fc_ceil(rows, FC_GRAM_PANEL) * FC_GRAM_PANEL;
    const int64_t from = first / ROWS * ROWS, both = ROWS + COLUMNS;
    const int64_t tiles = fc_ceil(rows * (rows + both) - from * (from + both), 2 * ROWS * COLUMNS);
    const int64_t asked =
        fc_ceil(next->bytes * rows / (tiles * next->blocks), LINE) * LINE; /* during a tile, so that all is in time */
    for (int64_t g = 0; g < rows; g += GROUP)
        for (int64_t i = (g > first ? g : first) / ROWS * ROWS; i < rows; i += ROWS)
            for (int64_t c = g; c < g + GROUP && c < i + ROWS; c += COLUMNS) {
                const char* stretch = fc_ahead_next(next, asked);
                for (int64_t k = 0; stretch && k < asked; k += LINE) _mm_prefetch(stretch + k, _MM_HINT_T1);
                tile(panel + place(i), panel + place(c), length, sum + i * stride + c, stride,
                     rescaled ? scale + i : NULL, scale + c);
            }
}

#define TO_F32(name, type, load)                                                                   \
    void fc_to_f32_##name##_avx2(const void* row, int64_t length, float* out) {                    \
        int64_t k = 0;                                                                             \
        for (; k + 8 <= length; k += 8)                                                            \
            _mm256_storeu_ps(out + k, widen8_f32((const char*)row + fc_itemsize(type) * k, type)); \
        for (; k < length; k++) out[k] = load(row, k);                                             \
    }
TO_F32(f32, FC_F32, fc_load_f32)
TO_F32(f16, FC_F16, fc_load_f16)
TO_F32(bf16, FC_BF16, fc_load_bf16)
