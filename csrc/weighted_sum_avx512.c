/* weighted_sum with AVX-512 F and BW. bf16 columns are taken as even and odd lanes of 32-bit words, by a shift and a
 * mask, since a widening move costs more than both; their sums stay in that order inside whole groups of 32 columns:
 * [even 0..7][even 8..15][odd 0..7][odd 8..15]. */
#include <immintrin.h>

#include "ask_x86.h"

INLINE __m512d low(__m512 x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
INLINE __m512d high(__m512 x) {
    return _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
}

/* 32 columns a step; `count` and `first` are constants at each call, so every loop over rows unrolls. */
INLINE int64_t step_f32(const void* const* rows, const double* w, int count, int64_t length, double* acc, int first) {
    const int amd = on_amd();
    int64_t k = 0;
    for (; k + 32 <= length; k += 32) {
        __m512d sum[4];
        for (int v = 0; v < 4; v++) sum[v] = first ? _mm512_setzero_pd() : _mm512_load_pd(acc + k + 8 * v);
        for (int r = 0; r < count; r++) {
            const float* x = (const float*)((const char*)rows[r] + 4 * k);
            const __m512d weight = _mm512_set1_pd(w[r]);
            ask(x, amd);
            ask(x + 16, amd);
            for (int v = 0; v < 4; v++)
                sum[v] = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(x + 8 * v)), weight, sum[v]);
        }
        for (int v = 0; v < 4; v++) _mm512_store_pd(acc + k + 8 * v, sum[v]);
    }
    return k;
}

INLINE int64_t step_f16(const void* const* rows, const double* w, int count, int64_t length, double* acc, int first) {
    const int amd = on_amd();
    int64_t k = 0;
    for (; k + 32 <= length; k += 32) {
        __m512d sum[4];
        for (int v = 0; v < 4; v++) sum[v] = first ? _mm512_setzero_pd() : _mm512_load_pd(acc + k + 8 * v);
        for (int r = 0; r < count; r++) {
            const char* x = (const char*)rows[r] + 2 * k;
            const __m512d weight = _mm512_set1_pd(w[r]);
            ask(x, amd);
            for (int v = 0; v < 2; v++) {
                const __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(x + 32 * v)));
                sum[2 * v] = _mm512_fmadd_pd(low(wide), weight, sum[2 * v]);
                sum[2 * v + 1] = _mm512_fmadd_pd(high(wide), weight, sum[2 * v + 1]);
            }
        }
        for (int v = 0; v < 4; v++) _mm512_store_pd(acc + k + 8 * v, sum[v]);
    }
    return k;
}

INLINE int64_t step_bf16(const void* const* rows, const double* w, int count, int64_t length, double* acc, int first) {
    const __m256i odd_mask = _mm256_set1_epi32((int)0xffff0000);
    const int amd = on_amd();
    int64_t k = 0;
    for (; k + 32 <= length; k += 32) {
        __m512d sum[4];
        for (int v = 0; v < 4; v++) sum[v] = first ? _mm512_setzero_pd() : _mm512_load_pd(acc + k + 8 * v);
        for (int r = 0; r < count; r++) {
            const char* x = (const char*)rows[r] + 2 * k;
            const __m512d weight = _mm512_set1_pd(w[r]);
            ask(x, amd);
            for (int v = 0; v < 2; v++) {
                const __m256i pair = _mm256_loadu_si256((const __m256i*)(x + 32 * v));
                const __m256i even = _mm256_slli_epi32(pair, 16), odd = _mm256_and_si256(pair, odd_mask);
                sum[v] = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_castsi256_ps(even)), weight, sum[v]);
                sum[2 + v] = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_castsi256_ps(odd)), weight, sum[2 + v]);
            }
        }
        for (int v = 0; v < 4; v++) _mm512_store_pd(acc + k + 8 * v, sum[v]);
    }
    return k;
}

/* One case a count of rows, so that it is a constant. */
#define ROWS(name, n)                                                                                  \
    case n:                                                                                            \
        k = first ? step_##name(rows, w, n, length, acc, 1) : step_##name(rows, w, n, length, acc, 0); \
        break;
#define GROUP(name) \
    ROWS(name, 1)   \
    ROWS(name, 2)   \
    ROWS(name, 3) ROWS(name, 4) ROWS(name, 5) ROWS(name, 6) ROWS(name, 7) ROWS(name, 8) ROWS(name, 9) ROWS(name, 10)
#define ACCUMULATE(name, size)                                                                                \
    void fc_weighted_sum_##name##_avx512(const void* const* rows, const double* w, int count, int64_t length, \
                                         double* acc, int first) {                                            \
        int64_t k = 0;                                                                                        \
        switch (count) { GROUP(name) }                                                                        \
        const void* rest[FC_WS_GROUP];                                                                        \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + size * k;                            \
        fc_weighted_sum_##name##_ref(rest, w, count, length - k, acc + k, first);                             \
    }
ACCUMULATE(f32, 4)
ACCUMULATE(f16, 2)
ACCUMULATE(bf16, 2)

/* fp64 to fp32 rounded to odd: what is cut off stays visible in the last bit, so a second rounding to 16 bits is right.
 */
INLINE __m512i to_odd(__m512d x) {
    const __m256 cut = _mm512_cvt_roundpd_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    const __mmask8 inexact = _mm512_cmp_pd_mask(_mm512_cvtps_pd(cut), x, _CMP_NEQ_OQ);
    const __m512i bits = _mm512_castsi256_si512(_mm256_castps_si256(cut));
    return _mm512_mask_or_epi32(bits, inexact, bits, _mm512_set1_epi32(1));
}
INLINE __m512i join(__m512i lower, __m512i upper) {
    return _mm512_inserti64x4(lower, _mm512_castsi512_si256(upper), 1);
}

INLINE void put(char* out, __m512i value, int stream) {
    if (stream && ((uintptr_t)out & 63) == 0) {
        _mm512_stream_si512((void*)out, value);
    } else if (stream && ((uintptr_t)out & 15) == 0) {
        _mm_stream_si128((__m128i*)out, _mm512_extracti32x4_epi32(value, 0));
        _mm_stream_si128((__m128i*)(out + 16), _mm512_extracti32x4_epi32(value, 1));
        _mm_stream_si128((__m128i*)(out + 32), _mm512_extracti32x4_epi32(value, 2));
        _mm_stream_si128((__m128i*)(out + 48), _mm512_extracti32x4_epi32(value, 3));
    } else {
        _mm512_storeu_si512((void*)out, value);
    }
}

/* One group of 32 columns as four vectors of fp64 in column order (split = 0) or as evens and odds (split = 1). */
INLINE __mmask8 emit(const __m512d* q, int split, fc_dtype type, char* out, int stream) {
    const __m512i even_first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i even_second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    if (type == FC_F64) {
        const __m512i pair_low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        const __m512i pair_high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
        const __m512i wide = _mm512_set1_epi64(0x7ff0000000000000ll);
        __mmask8 bad = 0;
        for (int v = 0; v < 4; v++) {
            const __m512i bits = _mm512_castpd_si512(q[v]);
            bad |= _mm512_cmpeq_epi64_mask(_mm512_and_si512(bits, wide), wide);
            const __m512d ordered =
                !split ? q[v] : _mm512_permutex2var_pd(q[v / 2], v % 2 ? pair_high : pair_low, q[2 + v / 2]);
            put(out + 64 * v, _mm512_castpd_si512(ordered), stream);
        }
        return bad;
    }
    __m512i a, b; /* 16 columns each */
    if (type == FC_F32) {
        a = join(_mm512_castsi256_si512(_mm256_castps_si256(_mm512_cvtpd_ps(q[0]))),
                 _mm512_castsi256_si512(_mm256_castps_si256(_mm512_cvtpd_ps(q[1]))));
        b = join(_mm512_castsi256_si512(_mm256_castps_si256(_mm512_cvtpd_ps(q[2]))),
                 _mm512_castsi256_si512(_mm256_castps_si256(_mm512_cvtpd_ps(q[3]))));
    } else {
        a = join(to_odd(q[0]), to_odd(q[1]));
        b = join(to_odd(q[2]), to_odd(q[3]));
    }
    if (split) {
        const __m512i even = a;
        a = _mm512_permutex2var_epi32(even, even_first, b);
        b = _mm512_permutex2var_epi32(even, even_second, b);
    }
    if (type == FC_F32) {
        put(out, a, stream);
        put(out + 64, b, stream);
        return (__mmask8)((_mm512_cmpeq_epi32_mask(_mm512_and_si512(a, exponent), exponent) |
                           _mm512_cmpeq_epi32_mask(_mm512_and_si512(b, exponent), exponent)) != 0);
    }
    __m512i packed;
    __mmask32 bad;
    if (type == FC_F16) {
        const __m512i infinity = _mm512_set1_epi16(0x7c00);
        const __m256i lower = _mm512_cvtps_ph(_mm512_castsi512_ps(a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m256i upper = _mm512_cvtps_ph(_mm512_castsi512_ps(b), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        packed = _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
        bad = _mm512_cmpeq_epi16_mask(_mm512_and_si512(packed, infinity), infinity);
    } else {
        const __m512i infinity = _mm512_set1_epi16(0x7f80), one = _mm512_set1_epi32(1);
        const __m512i half = _mm512_set1_epi32(0x7fff);
        const __mmask16 nan = _mm512_cmpeq_epi32_mask(_mm512_and_si512(a, exponent), exponent) |
                              _mm512_cmpeq_epi32_mask(_mm512_and_si512(b, exponent), exponent);
        a = _mm512_srli_epi32(
            _mm512_add_epi32(a, _mm512_add_epi32(half, _mm512_and_si512(_mm512_srli_epi32(a, 16), one))), 16);
        b = _mm512_srli_epi32(
            _mm512_add_epi32(b, _mm512_add_epi32(half, _mm512_and_si512(_mm512_srli_epi32(b, 16), one))), 16);
        packed = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b), 1);
        /* the addition may carry out of a NaN of all ones, so NaN is looked for before it */
        bad = nan | _mm512_cmpeq_epi16_mask(_mm512_and_si512(packed, infinity), infinity);
    }
    put(out, packed, stream);
    return bad != 0;
}

/* x / by, correctly rounded, without the divider: with inverse = RN(1 / by), one step makes the quotient faithful and
 * the next makes it the nearest (Markstein 1990, "Computation of elementary functions on the IBM RISC System/6000",
 * theorem 7.2). Sums of fp32 products lie between 2^-298 and 2^300, so with by in the same range no remainder is
 * subnormal. */
INLINE __m512d divide_by(__m512d x, __m512d by, __m512d inverse) {
    __m512d q = _mm512_mul_pd(x, inverse);
    q = _mm512_fmadd_pd(_mm512_fnmadd_pd(q, by, x), inverse, q);
    return _mm512_fmadd_pd(_mm512_fnmadd_pd(q, by, x), inverse, q);
}

INLINE int finish(const double* acc, int64_t length, double divisor, char* out, int stream, int split, fc_dtype type) {
    const __m512d by = _mm512_set1_pd(divisor), inverse = _mm512_set1_pd(1.0 / divisor);
    const int divide = !isnan(divisor), size = fc_itemsize(type),
              plain = fabs(divisor) < 0x1p300 && fabs(divisor) > 0x1p-300;
    int bad = 0;
    int64_t k = 0;
    for (; k + 32 <= length; k += 32) {
        __m512d q[4];
        for (int v = 0; v < 4; v++) {
            q[v] = _mm512_load_pd(acc + k + 8 * v);
            if (divide) q[v] = plain ? divide_by(q[v], by, inverse) : _mm512_div_pd(q[v], by);
        }
        bad |= emit(q, split, type, out + size * k, stream);
    }
    out += size * k;
    if (type == FC_F64) return bad | fc_weighted_sum_to_f64_ref(acc + k, length - k, divisor, out, 0);
    if (type == FC_F32) return bad | fc_weighted_sum_to_f32_ref(acc + k, length - k, divisor, out, 0);
    if (type == FC_F16) return bad | fc_weighted_sum_to_f16_ref(acc + k, length - k, divisor, out, 0);
    return bad | fc_weighted_sum_to_bf16_ref(acc + k, length - k, divisor, out, 0);
}

#define FINISH(name, type, suffix, split)                                                                     \
    int fc_weighted_sum_##suffix##name##_avx512(const double* acc, int64_t length, double divisor, void* out, \
                                                int stream) {                                                 \
        return finish(acc, length, divisor, out, stream, split, type);                                        \
    }
FINISH(f32, FC_F32, to_, 0)
FINISH(f64, FC_F64, to_, 0)
FINISH(f16, FC_F16, to_, 0)
FINISH(bf16, FC_BF16, to_, 0)
FINISH(f32, FC_F32, split_to_, 1)
FINISH(f64, FC_F64, split_to_, 1)
FINISH(f16, FC_F16, split_to_, 1)
FINISH(bf16, FC_BF16, split_to_, 1)
