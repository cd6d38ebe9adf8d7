/* weighted_sum with AVX2, FMA and F16C. bf16 is spread to fp64 by integers: sign, exponent and fraction at their places
 * make an fp64 that is BF16_SCALE times too small, as an exponent of 0 means the same in both, and the weights make up
 * for it. The sums stay in the order that it gives inside whole groups of 16 columns: 0, 4, 8, 12, then 1, 5, 9, 13,
 * and so on. */
#include <immintrin.h>

#include "ask_x86.h"

#define BF16_SCALE 0x1p896 /* 2^(1023 - 127); times any fp32 an fp64 */

INLINE __m256d low(__m256 x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
INLINE __m256d high(__m256 x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }

/* 16 columns of a row as four vectors: in column order, or for bf16 by column modulo 4. */
INLINE void widen(const char* row, fc_dtype type, __m256d* x, __m256i* most) {
    if (type == FC_F32) {
        for (int v = 0; v < 4; v++) x[v] = _mm256_cvtps_pd(_mm_loadu_ps((const float*)(row + 16 * v)));
    } else if (type == FC_F16) {
        for (int v = 0; v < 2; v++) {
            const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(row + 16 * v)));
            x[2 * v] = low(wide);
            x[2 * v + 1] = high(wide);
        }
    } else {
        const __m256i pair = _mm256_loadu_si256((const __m256i*)row);
        const __m256i places = _mm256_set1_epi32((int)0x8fffe000), upper = _mm256_set1_epi64x(-(1ll << 32));
        const __m256i even = _mm256_and_si256(_mm256_srai_epi32(_mm256_slli_epi32(pair, 16), 3), places);
        const __m256i odd = _mm256_and_si256(_mm256_srai_epi32(pair, 3), places);
        x[0] = _mm256_castsi256_pd(_mm256_slli_epi64(even, 32));
        x[1] = _mm256_castsi256_pd(_mm256_slli_epi64(odd, 32));
        x[2] = _mm256_castsi256_pd(_mm256_and_si256(even, upper));
        x[3] = _mm256_castsi256_pd(_mm256_and_si256(odd, upper));
        *most = _mm256_max_epu16(*most, _mm256_add_epi16(pair, pair));
    }
}

INLINE int64_t step(const void* const* rows, const double* w, int count, int64_t length, double* acc, int first,
                    fc_dtype type) {
    const int size = fc_itemsize(type), amd = on_amd();
    double weights[FC_WS_GROUP];
    for (int r = 0; r < count; r++) weights[r] = type == FC_BF16 ? w[r] * BF16_SCALE : w[r];
    __m256i most = _mm256_setzero_si256(); /* bf16: twice the largest magnitude of each lane */
    int64_t k = 0;
    for (; k + 16 <= length; k += 16) {
        __m256d sum[4], x[4];
        for (int v = 0; v < 4; v++) sum[v] = first ? _mm256_setzero_pd() : _mm256_load_pd(acc + k + 4 * v);
        for (int r = 0; r < count; r++) {
            const char* at = (const char*)rows[r] + size * k;
            const __m256d weight = _mm256_set1_pd(weights[r]);
            ask(at, amd);
            widen(at, type, x, &most);
            for (int v = 0; v < 4; v++) sum[v] = _mm256_fmadd_pd(x[v], weight, sum[v]);
        }
        for (int v = 0; v < 4; v++) _mm256_store_pd(acc + k + 4 * v, sum[v]);
    }
    /* Inf and NaN were spread to finite numbers: the sums that they would have made are not */
    const __m256i infinity = _mm256_set1_epi16((short)0xff00);
    if (_mm256_movemask_epi8(_mm256_cmpeq_epi16(_mm256_max_epu16(most, infinity), most)))
        for (int64_t i = 0; i < k; i++) acc[i] = NAN;
    return k;
}

/* One case a count of rows, so that it is a constant. */
#define ROWS(type, n)                                                                                \
    case n:                                                                                          \
        k = first ? step(rows, w, n, length, acc, 1, type) : step(rows, w, n, length, acc, 0, type); \
        break;
#define GROUP(type) \
    ROWS(type, 1)   \
    ROWS(type, 2)   \
    ROWS(type, 3) ROWS(type, 4) ROWS(type, 5) ROWS(type, 6) ROWS(type, 7) ROWS(type, 8) ROWS(type, 9) ROWS(type, 10)
#define ACCUMULATE(name, type)                                                                              \
    void fc_weighted_sum_##name##_avx2(const void* const* rows, const double* w, int count, int64_t length, \
                                       double* acc, int first) {                                            \
        int64_t k = 0;                                                                                      \
        switch (count) { GROUP(type) }                                                                      \
        const void* rest[FC_WS_GROUP];                                                                      \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;             \
        fc_weighted_sum_##name##_ref(rest, w, count, length - k, acc + k, first);                           \
    }
ACCUMULATE(f32, FC_F32)
ACCUMULATE(f16, FC_F16)
ACCUMULATE(bf16, FC_BF16)

/* Four fp64 to fp32 rounded to odd (see the AVX-512 file), from the nearest fp32: where that is even and not exact, the
 * odd neighbour on the other side of x is one step of the magnitude's integer away. The rounding mode is not touched,
 * since compilers do not order arithmetic against it. */
INLINE __m128i to_odd(__m256d x) {
    const __m256d magnitude = _mm256_castsi256_pd(_mm256_set1_epi64x(0x7fffffffffffffffll));
    const __m128 near = _mm256_cvtpd_ps(x);
    const __m256d back = _mm256_and_pd(_mm256_cvtps_pd(near), magnitude), size = _mm256_and_pd(x, magnitude);
    const __m256i pick = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    const __m256i above = _mm256_castpd_si256(_mm256_cmp_pd(back, size, _CMP_GT_OQ)); /* all ones: -1 */
    const __m256i below = _mm256_castpd_si256(_mm256_cmp_pd(back, size, _CMP_LT_OQ));
    const __m128i down = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(above, pick));
    const __m128i up = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(below, pick));
    const __m128i bits = _mm_castps_si128(near), one = _mm_set1_epi32(1);
    const __m128i even = _mm_cmpeq_epi32(_mm_and_si128(bits, one), _mm_setzero_si128());
    return _mm_add_epi32(bits, _mm_and_si128(even, _mm_sub_epi32(down, up)));
}

INLINE void put(char* out, __m256i value, int stream) {
    if (stream && ((uintptr_t)out & 31) == 0) {
        _mm256_stream_si256((__m256i*)out, value);
    } else if (stream && ((uintptr_t)out & 15) == 0) {
        _mm_stream_si128((__m128i*)out, _mm256_castsi256_si128(value));
        _mm_stream_si128((__m128i*)(out + 16), _mm256_extracti128_si256(value, 1));
    } else {
        _mm256_storeu_si256((__m256i*)out, value);
    }
}

INLINE int any_equal32(__m256i value, uint32_t mask) {
    const __m256i m = _mm256_set1_epi32((int)mask);
    return !!_mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_and_si256(value, m), m));
}

/* 16 columns of quotients, in order (split = 0) or by column modulo 4 (split = 1). */
INLINE int emit(__m256d* q, int split, fc_dtype type, char* out, int stream) {
    if (split) {
        const __m256d a = _mm256_unpacklo_pd(q[0], q[1]), b = _mm256_unpacklo_pd(q[2], q[3]);
        const __m256d c = _mm256_unpackhi_pd(q[0], q[1]), d = _mm256_unpackhi_pd(q[2], q[3]);
        q[0] = _mm256_permute2f128_pd(a, b, 0x20);
        q[1] = _mm256_permute2f128_pd(c, d, 0x20);
        q[2] = _mm256_permute2f128_pd(a, b, 0x31);
        q[3] = _mm256_permute2f128_pd(c, d, 0x31);
    }
    if (type == FC_F64) {
        const __m256i wide = _mm256_set1_epi64x(0x7ff0000000000000ll);
        int bad = 0;
        for (int v = 0; v < 4; v++) {
            const __m256i bits = _mm256_castpd_si256(q[v]);
            bad |= _mm256_movemask_epi8(_mm256_cmpeq_epi64(_mm256_and_si256(bits, wide), wide));
            put(out + 32 * v, bits, stream);
        }
        return !!bad;
    }
    __m128i part[4];
    for (int v = 0; v < 4; v++) part[v] = type == FC_F32 ? _mm_castps_si128(_mm256_cvtpd_ps(q[v])) : to_odd(q[v]);
    __m256i a = _mm256_set_m128i(part[1], part[0]), b = _mm256_set_m128i(part[3], part[2]);
    if (type == FC_F32) {
        put(out, a, stream);
        put(out + 32, b, stream);
        return any_equal32(a, 0x7f800000) | any_equal32(b, 0x7f800000);
    }
    __m256i packed;
    int nan = 0;
    if (type == FC_F16) {
        packed = _mm256_set_m128i(_mm256_cvtps_ph(_mm256_castsi256_ps(b), _MM_FROUND_TO_NEAREST_INT),
                                  _mm256_cvtps_ph(_mm256_castsi256_ps(a), _MM_FROUND_TO_NEAREST_INT));
    } else {
        /* the addition below may carry out of a NaN of all ones, so NaN is looked for before it */
        nan = any_equal32(a, 0x7f800000) | any_equal32(b, 0x7f800000);
        const __m256i one = _mm256_set1_epi32(1), half = _mm256_set1_epi32(0x7fff);
        a = _mm256_srli_epi32(
            _mm256_add_epi32(a, _mm256_add_epi32(half, _mm256_and_si256(_mm256_srli_epi32(a, 16), one))), 16);
        b = _mm256_srli_epi32(
            _mm256_add_epi32(b, _mm256_add_epi32(half, _mm256_and_si256(_mm256_srli_epi32(b, 16), one))), 16);
        packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    }
    const __m256i infinity = _mm256_set1_epi16(type == FC_F16 ? 0x7c00 : 0x7f80);
    put(out, packed, stream);
    return nan | !!_mm256_movemask_epi8(_mm256_cmpeq_epi16(_mm256_and_si256(packed, infinity), infinity));
}

/* As in the AVX-512 file: correctly rounded, without the divider. */
INLINE __m256d divide_by(__m256d x, __m256d by, __m256d inverse) {
    __m256d q = _mm256_mul_pd(x, inverse);
    q = _mm256_fmadd_pd(_mm256_fnmadd_pd(q, by, x), inverse, q);
    return _mm256_fmadd_pd(_mm256_fnmadd_pd(q, by, x), inverse, q);
}

INLINE int finish(const double* acc, int64_t length, double divisor, char* out, int stream, int split, fc_dtype type) {
    const __m256d by = _mm256_set1_pd(divisor), inverse = _mm256_set1_pd(1.0 / divisor);
    const int divide = !isnan(divisor), size = fc_itemsize(type),
              plain = fabs(divisor) < 0x1p300 && fabs(divisor) > 0x1p-300;
    int bad = 0;
    int64_t k = 0;
    for (; k + 16 <= length; k += 16) {
        __m256d q[4];
        for (int v = 0; v < 4; v++) {
            q[v] = _mm256_load_pd(acc + k + 4 * v);
            if (divide) q[v] = plain ? divide_by(q[v], by, inverse) : _mm256_div_pd(q[v], by);
        }
        bad |= emit(q, split, type, out + size * k, stream);
    }
    out += size * k;
    if (type == FC_F64) return bad | fc_weighted_sum_to_f64_ref(acc + k, length - k, divisor, out, 0);
    if (type == FC_F32) return bad | fc_weighted_sum_to_f32_ref(acc + k, length - k, divisor, out, 0);
    if (type == FC_F16) return bad | fc_weighted_sum_to_f16_ref(acc + k, length - k, divisor, out, 0);
    return bad | fc_weighted_sum_to_bf16_ref(acc + k, length - k, divisor, out, 0);
}

#define FINISH(name, type, suffix, split)                                                                   \
    int fc_weighted_sum_##suffix##name##_avx2(const double* acc, int64_t length, double divisor, void* out, \
                                              int stream) {                                                 \
        return finish(acc, length, divisor, out, stream, split, type);                                      \
    }
FINISH(f32, FC_F32, to_, 0)
FINISH(f64, FC_F64, to_, 0)
FINISH(f16, FC_F16, to_, 0)
FINISH(bf16, FC_BF16, to_, 0)
FINISH(f32, FC_F32, split_to_, 1)
FINISH(f64, FC_F64, split_to_, 1)
FINISH(f16, FC_F16, split_to_, 1)
FINISH(bf16, FC_BF16, split_to_, 1)
