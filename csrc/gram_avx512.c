/* gram with AVX-512 F: packing by 16 × 16 transposition, tiles of up to 8 × 32 products held in 16 registers, whose
 * panels share the first-level cache. Half a panel, on the diagonal, is a 256-bit vector: Zen 4, 256 bits wide inside,
 * multiplies twice as many of those. */
#include "gram_avx512.h"

enum { AHEAD = 1024 }; /* bytes of a row that lines are brought into the first level ahead of its packing */

INLINE int64_t pack(const void* const* rows, int count, const float* center, int64_t length, float* panel,
                    uint32_t* peak, fc_dtype type) {
    const int size = fc_itemsize(type);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 16 <= length; k += 16) {
        const __m512 c = center ? _mm512_loadu_ps(center + k) : _mm512_setzero_ps();
        __m512 x[16];
        for (int r = 0; r < count; r++) _mm_prefetch((const char*)rows[r] + size * k + AHEAD, _MM_HINT_T0);
        for (int r = 0; r < 16; r++)
            x[r] =
                r < count ? _mm512_sub_ps(widen16_f32((const char*)rows[r] + size * k, type), c) : _mm512_setzero_ps();
        transpose(x);
        for (int i = 0; i < 16; i++) {
            _mm512_store_ps(panel + fc_gram_place(k + i) * FC_GRAM_PANEL, x[i]);
            most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(x[i]), magnitude));
        }
    }
    _mm512_storeu_si512(peak, most);
    return k;
}

#define PACK(name, type, size)                                                                                 \
    void fc_gram_pack_##name##_avx512(const void* const* rows, int count, const float* center, int64_t length, \
                                      float* panel, uint32_t* peak) {                                          \
        const void* rest[FC_GRAM_PANEL];                                                                       \
        uint32_t rest_peak[FC_GRAM_PANEL];                                                                     \
        const int64_t k = count == 16 ? pack(rows, 16, center, length, panel, peak, type)                      \
                                      : pack(rows, count, center, length, panel, peak, type);                  \
        if (k == length) return;                                                                               \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + size * k;                             \
        fc_gram_pack_##name##_ref(rest, count, center ? center + k : NULL, length - k,                         \
                                  panel + fc_gram_place(k) * FC_GRAM_PANEL, rest_peak);                        \
        for (int r = 0; r < FC_GRAM_PANEL; r++) peak[r] = rest_peak[r] > peak[r] ? rest_peak[r] : peak[r];     \
    }
PACK(f32, FC_F32, 4)
PACK(f16, FC_F16, 2)
PACK(bf16, FC_BF16, 2)

/* One column: `rows` broadcasts times `halves` half panels: one, or whole panels. */
INLINE void step(__m512 dot[FC_GRAM_ROWS][FC_GRAM_WIDE], const float* a, int rows, const float* b, int64_t panel_stride,
                 int halves) {
    if (halves == 1) {
        const __m256 column = _mm256_load_ps(b);
        for (int r = 0; r < rows; r++)
            dot[r][0] = _mm512_castps256_ps512(
                _mm256_fmadd_ps(_mm256_broadcast_ss(a + r), column, _mm512_castps512_ps256(dot[r][0])));
        return;
    }
    __m512 column[FC_GRAM_WIDE];
    for (int p = 0; p < halves / 2; p++) column[p] = _mm512_load_ps(b + p * panel_stride);
    for (int r = 0; r < rows; r++) {
        const __m512 row = _mm512_set1_ps(a[r]);
        for (int p = 0; p < halves / 2; p++) dot[r][p] = _mm512_fmadd_ps(row, column[p], dot[r][p]);
    }
}

/* Products of the columns start..end, from zero. */
INLINE void run(__m512 dot[FC_GRAM_ROWS][FC_GRAM_WIDE], const float* a, int rows, const float* b, int64_t panel_stride,
                int halves, int64_t start, int64_t end, const char* const ahead[2]) {
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < (halves + 1) / 2; p++) dot[r][p] = _mm512_setzero_ps();
    int64_t k = start;
    for (; k + 4 <= end; k += 4) {
        _mm_prefetch(ahead[0] + k * 16, _MM_HINT_T1);
        step(dot, a + k * FC_GRAM_PANEL, rows, b + k * FC_GRAM_PANEL, panel_stride, halves);
        step(dot, a + (k + 1) * FC_GRAM_PANEL, rows, b + (k + 1) * FC_GRAM_PANEL, panel_stride, halves);
        _mm_prefetch(ahead[1] + k * 16, _MM_HINT_T1);
        step(dot, a + (k + 2) * FC_GRAM_PANEL, rows, b + (k + 2) * FC_GRAM_PANEL, panel_stride, halves);
        step(dot, a + (k + 3) * FC_GRAM_PANEL, rows, b + (k + 3) * FC_GRAM_PANEL, panel_stride, halves);
    }
    for (; k < end; k++) step(dot, a + k * FC_GRAM_PANEL, rows, b + k * FC_GRAM_PANEL, panel_stride, halves);
}

INLINE void tile(const float* a, int rows, const float* b, int64_t panel_stride, int halves, int64_t length,
                 double* sum, int64_t stride, const double* row_scale, const double* column_scale,
                 const char* const ahead[2]) {
    enum { LEVELS = 3 }; /* additions of two neighbours that leave one chain */
    __m512 dot[FC_GRAM_ROWS][FC_GRAM_WIDE], before[LEVELS][FC_GRAM_ROWS][FC_GRAM_WIDE];
    for (int chain = 0; chain < FC_GRAM_CHAINS; chain++) {
        const int64_t start = chain * FC_GRAM_RUN;
        run(dot, a, rows, b, panel_stride, halves, start, start + fc_ceil(length, FC_GRAM_CHAINS), ahead);
        int level = 0;
        for (; chain >> level & 1; level++) /* two sums of as many chains each become one */
            for (int r = 0; r < rows; r++)
                for (int p = 0; p < (halves + 1) / 2; p++) dot[r][p] = _mm512_add_ps(before[level][r][p], dot[r][p]);
        if (level < LEVELS) memcpy(before[level], dot, sizeof dot);
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < halves; h++) {
            const __m512d value =
                _mm512_cvtps_pd(h % 2 ? _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(dot[r][h / 2]), 1))
                                      : _mm512_castps512_ps256(dot[r][h / 2]));
            double* at = sum + r * stride + 8 * h;
            const __m512d scaled = row_scale
                                       ? _mm512_mul_pd(value, _mm512_mul_pd(_mm512_set1_pd(row_scale[r]),
                                                                            _mm512_loadu_pd(column_scale + 8 * h)))
                                       : value;
            _mm512_storeu_pd(at, _mm512_add_pd(_mm512_loadu_pd(at), scaled));
        }
}

#define TILE(rows, halves) tile(a, rows, b, panel_stride, halves, length, sum, stride, row_scale, column_scale, ahead)

void fc_gram_tile_avx512(const float* a, int rows, const float* b, int64_t panel_stride, int halves, int64_t length,
                         double* sum, int64_t stride, const double* row_scale, const double* column_scale,
                         const char* const ahead[2]) {
    enum { ROWS = FC_GRAM_ROWS };
    if (rows == ROWS && halves == 4) TILE(ROWS, 4);
    else if (rows == ROWS && halves == 2) TILE(ROWS, 2);
    else if (rows == ROWS) TILE(ROWS, 1);
    else if (halves == 4) TILE(ROWS / 2, 4);
    else if (halves == 2) TILE(ROWS / 2, 2);
    else TILE(ROWS / 2, 1);
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
