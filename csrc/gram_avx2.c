/* gram with AVX2 and FMA: packing by 8 × 8 transposition, products of 4 rows with one panel in 8 registers. */
#include <immintrin.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { AHEAD = 1024 }; /* bytes of a row that lines are brought into the first level ahead of its packing */

INLINE __m256 load8(const char* row, fc_dtype type) {
    if (type == FC_F32) return _mm256_loadu_ps((const float*)row);
    const __m128i half = _mm_loadu_si128((const __m128i*)row);
    if (type == FC_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* x[r] lane k becomes x[k] lane r. */
INLINE void transpose(__m256* x) {
    __m256 t[8], u[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int j = 0; j < 4; j++) {
        x[j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x20);
        x[4 + j] = _mm256_permute2f128_ps(u[j], u[4 + j], 0x31);
    }
}

INLINE int64_t pack(const void* const* rows, int count, const float* center, int64_t length, float* panel,
                    uint32_t* peak, fc_dtype type) {
    const int size = fc_itemsize(type);
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    int64_t k = 0;
    for (; k + 8 <= length; k += 8) {
        const __m256 c = center ? _mm256_loadu_ps(center + k) : _mm256_setzero_ps();
        if (k * size % 64 == 0)
            for (int r = 0; r < count; r++) _mm_prefetch((const char*)rows[r] + size * k + AHEAD, _MM_HINT_T0);
        for (int h = 0; h < 2; h++) {
            __m256 x[8];
            for (int r = 0; r < 8; r++)
                x[r] = 8 * h + r < count ? _mm256_sub_ps(load8((const char*)rows[8 * h + r] + size * k, type), c)
                                         : _mm256_setzero_ps();
            transpose(x);
            for (int i = 0; i < 8; i++) {
                _mm256_store_ps(panel + (k + i) * FC_GRAM_PANEL + 8 * h, x[i]);
                most[h] = _mm256_max_epu32(most[h], _mm256_and_si256(_mm256_castps_si256(x[i]), magnitude));
            }
        }
    }
    _mm256_storeu_si256((__m256i*)peak, most[0]);
    _mm256_storeu_si256((__m256i*)(peak + 8), most[1]);
    return k;
}

#define PACK(name, type, size)                                                                                    \
    void fc_gram_pack_##name##_avx2(const void* const* rows, int count, const float* center, int64_t length,      \
                                    float* panel, uint32_t* peak) {                                               \
        const void* rest[FC_GRAM_PANEL];                                                                          \
        uint32_t rest_peak[FC_GRAM_PANEL];                                                                        \
        const int64_t k = count == 16 ? pack(rows, 16, center, length, panel, peak, type)                         \
                                      : pack(rows, count, center, length, panel, peak, type);                     \
        if (k == length) return;                                                                                  \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + size * k;                                \
        fc_gram_pack_##name##_ref(rest, count, center ? center + k : NULL, length - k, panel + k * FC_GRAM_PANEL, \
                                  rest_peak);                                                                     \
        for (int r = 0; r < FC_GRAM_PANEL; r++) peak[r] = rest_peak[r] > peak[r] ? rest_peak[r] : peak[r];        \
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

/* One column: `rows` broadcasts times CHAINS / rows vectors of a panel. */
INLINE void step(__m256 dot[CHAINS], const float* a, const float* b, int rows) {
    const __m256 first = _mm256_load_ps(b), second = _mm256_load_ps(b + 8);
    for (int r = 0; r < rows; r++) {
        const __m256 row = _mm256_broadcast_ss(a + r);
        dot[r] = _mm256_fmadd_ps(row, first, dot[r]);
        if (rows < CHAINS) dot[rows + r] = _mm256_fmadd_ps(row, second, dot[rows + r]);
    }
}

/* Products of the columns start..end, from zero; `ahead`: NULL, or what is asked for meanwhile. */
INLINE void run(__m256 dot[CHAINS], const float* a, const float* b, int64_t start, int64_t end, const char* ahead,
                int rows) {
    for (int i = 0; i < CHAINS; i++) dot[i] = _mm256_setzero_ps();
    int64_t k = start;
    for (; k + 4 <= end; k += 4) {
        if (ahead) _mm_prefetch(ahead + k * 16, _MM_HINT_T1);
        for (int i = 0; i < 4; i++) step(dot, a + (k + i) * FC_GRAM_PANEL, b + (k + i) * FC_GRAM_PANEL, rows);
    }
    for (; k < end; k++) step(dot, a + k * FC_GRAM_PANEL, b + k * FC_GRAM_PANEL, rows);
}

INLINE void tile(const float* a, const float* b, int64_t length, double* sum, int64_t stride, const double* row_scale,
                 const double* column_scale, const char* ahead, int rows) {
    __m256 dot[CHAINS], before[CHAINS];
    run(before, a, b, 0, fc_min(FC_GRAM_RUN, length), ahead, rows);
    for (int64_t k = FC_GRAM_RUN; k < length; k += FC_GRAM_RUN) {
        run(dot, a, b, k, fc_min(k + FC_GRAM_RUN, length), ahead, rows);
        for (int i = 0; i < CHAINS; i++) before[i] = _mm256_add_ps(before[i], dot[i]);
    }
    for (int i = 0; i < CHAINS; i++)
        add_scaled(sum + i % rows * stride + i / rows * 8, before[i], row_scale ? row_scale + i % rows : NULL,
                   row_scale ? column_scale + i / rows * 8 : NULL);
}

#define TILE(rows, top, ahead)                                                                      \
    tile(a + (top), b + p * panel_stride, length, sum + (top) * stride + p * FC_GRAM_PANEL, stride, \
         row_scale ? row_scale + (top) : NULL, row_scale ? column_scale + p * FC_GRAM_PANEL : NULL, ahead, rows)

/* A panel by half of the rows at a time, half a panel by all: either way there are CHAINS products. */
void fc_gram_tile_avx2(const float* a, int rows, const float* b, int64_t panel_stride, int halves, int64_t length,
                       double* sum, int64_t stride, const double* row_scale, const double* column_scale,
                       const char* const ahead[2]) {
    enum { HALF = FC_GRAM_ROWS / 2 };
    for (int p = 0; p < (halves + 1) / 2; p++)
        if (halves == 1 && rows == FC_GRAM_ROWS) TILE(FC_GRAM_ROWS, 0, ahead[0]);
        else if (p == 0) {
            TILE(HALF, 0, ahead[0]);
            if (rows == FC_GRAM_ROWS) TILE(HALF, HALF, ahead[1]);
        } else {
            TILE(HALF, 0, NULL);
            if (rows == FC_GRAM_ROWS) TILE(HALF, HALF, NULL);
        }
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
