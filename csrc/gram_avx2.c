/* gram with AVX2 and FMA. Rows are packed one after the other, and products are dot products along the columns, of
 * three rows by four, with a chain in each lane. */
#include <immintrin.h>

#include "impl.h"
#include "widen_avx2.h"

enum {
    LANES = FC_GRAM_CHAINS,
    ROWS = 3,
    COLUMNS = 4, /* 12 chains: two multiply-adds a cycle, of four cycles each, need 8 */
    GROUP = 16,  /* rows that stay in the first-level cache as a tile's columns */
    LINE = 64
};

/* A row's differences, and the largest of their magnitudes as bits; the row at `next` is asked for. */
INLINE uint32_t pack_row(const char* row, const char* next, const float* center, int64_t length, float* to,
                         fc_dtype type) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const int size = fc_itemsize(type);
    const int64_t whole = length / LANES * LANES;
    __m256i most = _mm256_setzero_si256();
    for (int64_t k = 0; k < whole; k += LANES) {
        const __m256 x =
            _mm256_sub_ps(widen8_f32(row + size * k, type), center ? _mm256_loadu_ps(center + k) : _mm256_setzero_ps());
        if (size * k % LINE == 0) _mm_prefetch(next + size * k, _MM_HINT_T0);
        most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(x), magnitude));
        _mm256_store_ps(to + k, x);
    }
    if (whole < length) { /* zeros to the end of the vector: columns of no row */
        float rest[LANES] = {0};
        for (int64_t k = whole; k < length; k++) {
            const float x = type == FC_F32   ? fc_load_f32(row, k)
                            : type == FC_F16 ? fc_load_f16(row, k)
                                             : fc_load_bf16(row, k);
            rest[k - whole] = x - (center ? center[k] : 0.0f);
        }
        const __m256 x = _mm256_loadu_ps(rest);
        most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(x), magnitude));
        _mm256_store_ps(to + whole, x);
    }
    uint32_t lanes[LANES], peak = 0;
    _mm256_storeu_si256((__m256i*)lanes, most);
    for (int i = 0; i < LANES; i++) peak = lanes[i] > peak ? lanes[i] : peak;
    return peak;
}

#define PACK(name, type)                                                                                               \
    void fc_gram_pack_##name##_avx2(const void* const* rows, int count, const float* center, int64_t length,           \
                                    float* panel, uint32_t* peak) {                                                    \
        memset(peak, 0, FC_GRAM_PANEL * sizeof *peak);                                                                 \
        for (int r = 0; r < count; r++)                                                                                \
            peak[r] = center                                                                                           \
                          ? pack_row(rows[r], rows[r + FC_GRAM_NEXT], center, length, panel + r * FC_GRAM_BLOCK, type) \
                          : pack_row(rows[r], rows[r + FC_GRAM_NEXT], NULL, length, panel + r * FC_GRAM_BLOCK, type);  \
    }
PACK(f32, FC_F32)
PACK(f16, FC_F16)
PACK(bf16, FC_BF16)

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
        for (int r = 0; r < ROWS; r++) row[r] = _mm256_load_ps(a + r * FC_GRAM_BLOCK + k);
        for (int c = 0; c < COLUMNS; c++) {
            const __m256 column = _mm256_load_ps(b + c * FC_GRAM_BLOCK + k);
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
    const int64_t stride = fc_ceil(rows, FC_GRAM_PANEL) * FC_GRAM_PANEL;
    const int64_t tiles = rows * (rows + ROWS + COLUMNS) / (2 * ROWS * COLUMNS) + 1;
    const int64_t asked =
        fc_ceil(next->bytes * rows / (tiles * next->blocks), LINE) * LINE; /* during a tile, so that all is in time */
    for (int64_t g = 0; g < rows; g += GROUP)
        for (int64_t i = (g > first ? g : first) / ROWS * ROWS; i < rows; i += ROWS)
            for (int64_t c = g; c < g + GROUP && c < i + ROWS; c += COLUMNS) {
                const char* stretch = fc_ahead_next(next, asked);
                for (int64_t k = 0; stretch && k < asked; k += LINE) _mm_prefetch(stretch + k, _MM_HINT_T1);
                tile(panel + i * FC_GRAM_BLOCK, panel + c * FC_GRAM_BLOCK, length, sum + i * stride + c, stride,
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
