/* gram with AVX2 and FMA: packing transposes 8 rows × 4 columns, products are of 4 rows and a panel in 8 registers. */
#include <immintrin.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { UNROLL = 4 }; /* columns of a step of packing, and of products */

INLINE __m256 load8(const char* row, fc_dtype type) {
    if (type == FC_F32) return _mm256_loadu_ps((const float*)row);
    const __m128i half = _mm_loadu_si128((const __m128i*)row);
    if (type == FC_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Columns k to k + 3 of row r in the lower half, of row r + 4 in the upper one. */
INLINE __m256 load4x2(const char* low, const char* high, fc_dtype type) {
    if (type == FC_F32)
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps((const float*)low)),
                                    _mm_loadu_ps((const float*)high), 1);
    const __m128i half =
        _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)low), _mm_loadl_epi64((const __m128i*)high));
    if (type == FC_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Four columns of eight rows, load4x2's x[r] with row r in the lower half, become x[k] lane r. */
INLINE void transpose(__m256* x) {
    const __m256 a = _mm256_unpacklo_ps(x[0], x[1]), b = _mm256_unpackhi_ps(x[0], x[1]);
    const __m256 c = _mm256_unpacklo_ps(x[2], x[3]), d = _mm256_unpackhi_ps(x[2], x[3]);
    x[0] = _mm256_shuffle_ps(a, c, 0x44);
    x[1] = _mm256_shuffle_ps(a, c, 0xee);
    x[2] = _mm256_shuffle_ps(b, d, 0x44);
    x[3] = _mm256_shuffle_ps(b, d, 0xee);
}

/* Columns of half a panel's rows before the other half: where rows begin at the same place of a page, lines of all lie
 * in one set of the first-level cache, which holds eight. */
enum { STRETCH = 64 };

/* Columns of `count` <= 8 rows into half a panel. */
INLINE __m256i pack_half(const char* const* rows, int count, const float* center, int64_t k, int64_t end, float* panel,
                         __m256i most, fc_dtype type) {
    const int size = fc_itemsize(type);
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    for (; k < end; k += UNROLL) {
        const __m256 c = center ? _mm256_broadcast_ps((const __m128*)(center + k)) : _mm256_setzero_ps();
        __m256 x[4];
        for (int r = 0; r < 4; r++) {
            x[r] = _mm256_setzero_ps();
            if (r < count)
                x[r] = _mm256_sub_ps(load4x2(rows[r] + size * k, rows[r + 4 < count ? r + 4 : r] + size * k, type), c);
            if (r + 4 >= count) x[r] = _mm256_insertf128_ps(x[r], _mm_setzero_ps(), 1);
        }
        transpose(x);
        for (int i = 0; i < 4; i++) {
            _mm256_store_ps(panel + (k + i) * FC_GRAM_PANEL, x[i]);
            most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(x[i]), magnitude));
        }
    }
    return most;
}

INLINE int64_t pack(const void* const* rows, int count, const float* center, int64_t length, float* panel,
                    uint32_t* peak, fc_dtype type) {
    __m256i most[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    const int64_t whole = length / UNROLL * UNROLL;
    for (int64_t k = 0; k < whole; k += STRETCH)
        for (int h = 0; h < 2; h++)
            most[h] = pack_half((const char* const*)rows + 8 * h, count - 8 * h, center, k, fc_min(k + STRETCH, whole),
                                panel + 8 * h, most[h], type);
    _mm256_storeu_si256((__m256i*)peak, most[0]);
    _mm256_storeu_si256((__m256i*)(peak + 8), most[1]);
    return whole;
}

#define PACK(name, type, size)                                                                                         \
    void fc_gram_pack_##name##_avx2(const void* const* rows, int count, const float* center, int64_t length,           \
                                    float* panel, uint32_t* peak) {                                                    \
        const void* rest[FC_GRAM_PANEL];                                                                               \
        uint32_t rest_peak[FC_GRAM_PANEL];                                                                             \
        const int64_t k = count == 16 ? pack(rows, 16, center, length, panel, peak, type)                              \
                                      : pack(rows, count, center, length, panel, peak, type);                          \
        if (k == length) return;                                                                                       \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + size * k;                                     \
        fc_gram_pack_##name##_ref(rest, count, center ? center + k : NULL, length - k, panel + k * FC_GRAM_PANEL,      \
                                  rest_peak);                                                                          \
        for (int r = 0; r < FC_GRAM_PANEL; r++) peak[r] = rest_peak[r] > peak[r] ? rest_peak[r] : peak[r];             \
        for (int64_t c = length; c % UNROLL; c++) memset(panel + c * FC_GRAM_PANEL, 0, FC_GRAM_PANEL * sizeof *panel); \
    }
PACK(f32, FC_F32, 4)
PACK(f16, FC_F16, 2)
PACK(bf16, FC_BF16, 2)

enum { CHAINS = 8 }; /* what two multiply-adds a cycle need, of four cycles each */

/* sum[0..8) += value, times the scales of a row and of columns (NULL: 1). */
INLINE void add_scaled(double* sum, __m256 value, const double* row_scale, const double* column_scale) {
    for (int h = 0; h < 8; h += 4) {
        __m256d wide = _mm256_cvtps_pd(h ? _mm256_extractf128_ps(value, 1) : _mm256_castps256_ps128(value));
        if (row_scale)
            wide = _mm256_mul_pd(wide, _mm256_mul_pd(_mm256_set1_pd(*row_scale), _mm256_loadu_pd(column_scale + h)));
        _mm256_storeu_pd(sum + h, _mm256_add_pd(_mm256_loadu_pd(sum + h), wide));
    }
}

/* Products of `rows` rows with CHAINS / rows vectors of a panel over the columns start..end, a multiple of UNROLL, from
 * zero, added to `sum`; `ahead`: NULL, or what is asked for meanwhile. */
INLINE void run(__m256 sum[CHAINS], const float* a, const float* b, int64_t start, int64_t end, const char* ahead,
                int rows) {
    __m256 dot[CHAINS];
    for (int i = 0; i < CHAINS; i++) dot[i] = _mm256_setzero_ps();
    for (int64_t k = start; k < end; k += UNROLL) {
        if (ahead) _mm_prefetch(ahead + k * 16, _MM_HINT_T1);
        for (int64_t at = k * FC_GRAM_PANEL, i = 0; i < UNROLL; i++, at += FC_GRAM_PANEL) {
            const __m256 first = _mm256_load_ps(b + at), second = _mm256_load_ps(b + at + 8);
            for (int r = 0; r < rows; r++) {
                const __m256 row = _mm256_broadcast_ss(a + at + r);
                dot[r] = _mm256_fmadd_ps(row, first, dot[r]);
                if (rows < CHAINS) dot[rows + r] = _mm256_fmadd_ps(row, second, dot[rows + r]);
            }
        }
    }
    for (int i = 0; i < CHAINS; i++) sum[i] = start ? _mm256_add_ps(sum[i], dot[i]) : dot[i];
}

/* `parts` times `rows` rows, whose runs of columns stay in the first-level cache from one part to the next. */
INLINE void tile(const float* a, const float* b, int64_t length, double* sum, int64_t stride, const double* row_scale,
                 const double* column_scale, const char* const* ahead, int rows, int parts) {
    __m256 dot[2][CHAINS];
    length = fc_ceil(length, UNROLL) * UNROLL; /* packing made the rest zeros */
    int64_t k = 0;
    do { /* once at least: no block is empty */
        for (int p = 0; p < parts; p++)
            run(dot[p], a + p * rows, b, k, fc_min(k + FC_GRAM_RUN, length), ahead ? ahead[p] : NULL, rows);
        k += FC_GRAM_RUN;
    } while (k < length);
    for (int p = 0; p < parts; p++)
        for (int i = 0; i < CHAINS; i++) {
            const int row = p * rows + i % rows, column = i / rows * 8;
            add_scaled(sum + row * stride + column, dot[p][i], row_scale ? row_scale + row : NULL,
                       row_scale ? column_scale + column : NULL);
        }
}

#define TILE(rows, parts, ahead)                                                      \
    tile(a, b + p * panel_stride, length, sum + p * FC_GRAM_PANEL, stride, row_scale, \
         row_scale ? column_scale + p * FC_GRAM_PANEL : NULL, ahead, rows, parts)

/* A panel by half of the rows at a time, half a panel by all: either way there are CHAINS products. */
void fc_gram_tile_avx2(const float* a, int rows, const float* b, int64_t panel_stride, int halves, int64_t length,
                       double* sum, int64_t stride, const double* row_scale, const double* column_scale,
                       const char* const ahead[2]) {
    enum { HALF = FC_GRAM_ROWS / 2 };
    for (int p = 0; p < (halves + 1) / 2; p++)
        if (halves == 1 && rows == FC_GRAM_ROWS) TILE(FC_GRAM_ROWS, 1, ahead);
        else if (rows < FC_GRAM_ROWS) TILE(HALF, 1, p ? NULL : ahead);
        else TILE(HALF, 2, p ? NULL : ahead);
}

#define TO_F32(name, type, load)                                                              \
    void fc_to_f32_##name##_avx2(const void* row, int64_t length, float* out) {               \
        int64_t k = 0;                                                                        \
        for (; k + 8 <= length; k += 8)                                                       \
            _mm256_storeu_ps(out + k, load8((const char*)row + fc_itemsize(type) * k, type)); \
        for (; k < length; k++) out[k] = load(row, k);                                        \
    }
TO_F32(f32, FC_F32, fc_load_f32)
TO_F32(f16, FC_F16, fc_load_f16)
TO_F32(bf16, FC_BF16, fc_load_bf16)
