/* gram with AVX-512: two rows are packed side by side, 8 columns of the one and 8 of the other, and products are dot
 * products along the columns, of four such pairs by four rows, with a chain in each lane. */
#include "gram_rows.h"
#include "widen_avx512.h"

enum {
    PAIRS = 4,
    COLUMNS = 4,
    GROUP = 64, /* rows that are tiles' columns for all rows below, from the second-level cache, before the next are */
    APART = 2 * LANES
};

INLINE int64_t place(int64_t row) { return row / 2 * 2 * FC_GRAM_BLOCK + row % 2 * LANES; }

PACK(f32, FC_F32, avx512)
PACK(f16, FC_F16, avx512)
PACK(bf16, FC_BF16, avx512)

/* Sums of neighbouring lanes, as _mm256_hadd_ps has them. */
INLINE __m512 halved(__m512 x, __m512 y) {
    return _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x88), _mm512_shuffle_ps(x, y, 0xdd));
}

/* Adds four fp32 products of a row to its sums. */
INLINE void fold(__m128 found, double* sum, const double* row_scale, const double* column_scale) {
    __m256d wide = _mm256_cvtps_pd(found);
    if (row_scale) wide = _mm256_mul_pd(wide, _mm256_mul_pd(_mm256_set1_pd(*row_scale), _mm256_loadu_pd(column_scale)));
    _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), wide));
}

/* sum[r][c] += row r of a times row c of b (times their scales) over the first `length` columns of both. */
INLINE void tile(const float* a, int pairs, const float* b, int64_t length, double* sum, int64_t stride,
                 const double* row_scale, const double* column_scale) {
    __m512 dot[PAIRS][COLUMNS];
    for (int p = 0; p < pairs; p++)
        for (int c = 0; c < COLUMNS; c++) dot[p][c] = _mm512_setzero_ps();
    for (int64_t k = 0; k < length; k += LANES) {
        __m512 row[PAIRS];
        for (int p = 0; p < pairs; p++) row[p] = _mm512_load_ps(a + place(2 * p) + 2 * k);
        for (int c = 0; c < COLUMNS; c++) {
            const __m512 column = _mm512_broadcast_f32x8(_mm256_load_ps(b + place(c) + 2 * k));
            for (int p = 0; p < pairs; p++) dot[p][c] = _mm512_fmadd_ps(row[p], column, dot[p][c]);
        }
    }
    for (int p = 0; p < pairs; p += 2) {
        __m512 lanes[2]; /* of each row of a pair the sums of chains 0 to 3, then those of 4 to 7 */
        for (int i = 0; i < 2; i++)
            lanes[i] = halved(halved(dot[p + i][0], dot[p + i][1]), halved(dot[p + i][2], dot[p + i][3]));
        const __m512 found = _mm512_add_ps(_mm512_shuffle_f32x4(lanes[0], lanes[1], 0x88),
                                           _mm512_shuffle_f32x4(lanes[0], lanes[1], 0xdd));
        const double* scale = row_scale ? row_scale + 2 * p : NULL;
        double* to = sum + 2 * p * stride;
        fold(_mm512_extractf32x4_ps(found, 0), to, scale, column_scale);
        fold(_mm512_extractf32x4_ps(found, 1), to + stride, scale ? scale + 1 : NULL, column_scale);
        fold(_mm512_extractf32x4_ps(found, 2), to + 2 * stride, scale ? scale + 2 : NULL, column_scale);
        fold(_mm512_extractf32x4_ps(found, 3), to + 3 * stride, scale ? scale + 3 : NULL, column_scale);
    }
}

void fc_gram_products_avx512(const float* panel, int64_t rows, int64_t first, int64_t length, double* sum,
                             double* scale, int rescaled, fc_ahead* next) {
    enum { ROWS = 2 * PAIRS, HALF = PAIRS };
    if (first >= rows) return;
    const int64_t stride = fc_ceil(rows, FC_GRAM_PANEL) * FC_GRAM_PANEL;
    const int64_t from = first / ROWS * ROWS;
    const int64_t tiles = fc_ceil(rows * (rows + ROWS) - from * (from + ROWS), 2 * ROWS * COLUMNS);
    const int64_t asked =
        fc_ceil(next->bytes * rows / (tiles * next->blocks), LINE) * LINE; /* during a tile, so that all is in time */
    for (int64_t g = 0; g < rows; g += GROUP)
        for (int64_t i = (g > first ? g : first) / ROWS * ROWS; i < rows; i += ROWS)
            for (int64_t c = g; c < g + GROUP && c < i + ROWS && c < rows; c += COLUMNS) {
                const char* stretch = fc_ahead_next(next, asked);
                for (int64_t k = 0; stretch && k < asked; k += LINE) _mm_prefetch(stretch + k, _MM_HINT_T1);
                const float* b = panel + place(c);
                const double* columns = scale + c;
                if (c >= i + HALF) /* above the diagonal but for the lower half */
                    tile(panel + place(i + HALF), PAIRS / 2, b, length, sum + (i + HALF) * stride + c, stride,
                         rescaled ? scale + i + HALF : NULL, columns);
                else if (rows - i <= HALF)
                    tile(panel + place(i), PAIRS / 2, b, length, sum + i * stride + c, stride,
                         rescaled ? scale + i : NULL, columns);
                else
                    tile(panel + place(i), PAIRS, b, length, sum + i * stride + c, stride, rescaled ? scale + i : NULL,
                         columns);
            }
}

#define TO_F32(name, type, load)                                                                    \
    void fc_to_f32_##name##_avx512(const void* row, int64_t length, float* out) {                   \
        int64_t k = 0;                                                                              \
        for (; k + 16 <= length; k += 16)                                                           \
            _mm512_storeu_ps(out + k, widen16_f32((const char*)row + fc_itemsize(type) * k, type)); \
        for (; k < length; k++) out[k] = load(row, k);                                              \
    }
TO_F32(f32, FC_F32, fc_load_f32)
TO_F32(f16, FC_F16, fc_load_f16)
TO_F32(bf16, FC_BF16, fc_load_bf16)
