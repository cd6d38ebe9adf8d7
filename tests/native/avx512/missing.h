/* What SIMDe 0.7.4 lacks of AVX-512 F, BW, DQ and VAES, by halves of AVX2 or lane by lane, after Intel's Intrinsics
 * Guide. The names are the compiler's already: each is given another. */
#define _mm512_aesenc_epi128 emulated_aesenc_epi128
#define _mm512_aesenclast_epi128 emulated_aesenclast_epi128
#define _mm512_cmpeq_epi16_mask emulated_cmpeq_epi16_mask
#define _mm512_cmpgt_epi16_mask emulated_cmpgt_epi16_mask
#define _mm512_cmplt_epi32_mask emulated_cmplt_epi32_mask
#define _mm512_cmplt_epu32_mask emulated_cmplt_epu32_mask
#define _mm512_cvt_roundpd_ps emulated_cvt_roundpd_ps
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
#define _mm512_cvtepi32_epi64 emulated_cvtepi32_epi64
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepu32_epi64 emulated_cvtepu32_epi64
#define _mm512_cvtpd_epi32 emulated_cvtpd_epi32
#define _mm512_cvtpd_epi64 emulated_cvtpd_epi64
#define _mm512_cvtpd_ps emulated_cvtpd_ps
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtps_pd emulated_cvtps_pd
#define _mm512_cvtps_ph emulated_cvtps_ph
#define _mm512_extractf32x8_ps emulated_extractf32x8_ps
#define _mm512_extracti32x8_epi32 emulated_extracti32x8_epi32
#define _mm512_mask_cmp_ps_mask(among, a, b, how) ((__mmask16)((among) & _mm512_cmp_ps_mask(a, b, how)))
#define _mm512_mask_cmplt_epi32_mask(among, a, b) ((__mmask16)((among) & _mm512_cmplt_epi32_mask(a, b)))
#define _mm512_mask_cmplt_epu64_mask emulated_mask_cmplt_epu64_mask
#define _mm512_mask_expand_epi32 emulated_mask_expand_epi32
#define _mm512_mask_loadu_epi32 emulated_mask_loadu_epi32
#define _mm512_permute_ps emulated_permute_ps
#define _mm512_reduce_add_epi64 emulated_reduce_add_epi64
#define _mm512_srai_epi32 emulated_srai_epi32
#define _mm512_stream_si512 emulated_stream_si512

/* SIMDe 0.7.4 has these, but not by the names of the compiler */
#define _mm512_shuffle_f32x4(a, b, order) simde_mm512_shuffle_f32x4(a, b, order)
#define _mm512_shuffle_f64x2(a, b, order) simde_mm512_shuffle_f64x2(a, b, order)

#define EMULATED SIMDE_FUNCTION_ATTRIBUTES __attribute__((unused))

typedef simde__m512_private floats;
typedef simde__m512d_private doubles;
typedef simde__m512i_private integers;

/* From two halves, and the halves of x. */
EMULATED __m512 of_floats(__m256 low, __m256 high) { return simde__m512_from_private((floats){.m256 = {low, high}}); }
EMULATED __m512d of_doubles(__m256d low, __m256d high) {
    return simde__m512d_from_private((doubles){.m256d = {low, high}});
}
EMULATED __m512i of_integers(__m256i low, __m256i high) {
    return simde__m512i_from_private((integers){.m256i = {low, high}});
}
EMULATED __m256 float_half(__m512 x, int i) { return simde__m512_to_private(x).m256[i]; }
EMULATED __m256d double_half(__m512d x, int i) { return simde__m512d_to_private(x).m256d[i]; }
EMULATED __m256i integer_half(__m512i x, int i) { return simde__m512i_to_private(x).m256i[i]; }
EMULATED __m128i integer_quarter(__m512i x, int i) { return simde__m512i_to_private(x).m128i[i]; }
EMULATED __m256i joined(__m128i low, __m128i high) { return _mm256_set_m128i(high, low); }

#define COMPARISON(mask, name, lanes, operator, bits)                                   \
    EMULATED mask name(__m512i a, __m512i b) {                                          \
        const integers x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);  \
        integers found;                                                                 \
        found.i##bits = (__typeof__(found.i##bits))(x.lanes operator y.lanes);          \
        return (mask)simde_mm512_movepi##bits##_mask(simde__m512i_from_private(found)); \
    }
COMPARISON(__mmask32, _mm512_cmpeq_epi16_mask, i16, ==, 16)
COMPARISON(__mmask32, _mm512_cmpgt_epi16_mask, i16, >, 16)
COMPARISON(__mmask16, _mm512_cmplt_epi32_mask, i32, <, 32)
COMPARISON(__mmask16, _mm512_cmplt_epu32_mask, u32, <, 32)
COMPARISON(__mmask8, emulated_cmplt_epu64_mask, u64, <, 64)
EMULATED __mmask8 _mm512_mask_cmplt_epu64_mask(__mmask8 among, __m512i a, __m512i b) {
    return among & emulated_cmplt_epu64_mask(a, b);
}

/* Conversions to wider lanes. */
EMULATED __m512i _mm512_cvtepi8_epi32(__m128i x) {
    return of_integers(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}
EMULATED __m512i _mm512_cvtepu16_epi32(__m256i x) {
    return of_integers(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                       _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
}
EMULATED __m512i _mm512_cvtepi32_epi64(__m256i x) {
    return of_integers(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(x)),
                       _mm256_cvtepi32_epi64(_mm256_extracti128_si256(x, 1)));
}
EMULATED __m512i _mm512_cvtepu32_epi64(__m256i x) {
    return of_integers(_mm256_cvtepu32_epi64(_mm256_castsi256_si128(x)),
                       _mm256_cvtepu32_epi64(_mm256_extracti128_si256(x, 1)));
}
EMULATED __m512 _mm512_cvtph_ps(__m256i x) {
    return of_floats(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
EMULATED __m512d _mm512_cvtps_pd(__m256 x) {
    return of_doubles(_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
}

/* Conversions to lanes as wide or narrower. */
EMULATED __m512 _mm512_cvtepi32_ps(__m512i x) {
    return of_floats(_mm256_cvtepi32_ps(integer_half(x, 0)), _mm256_cvtepi32_ps(integer_half(x, 1)));
}
EMULATED __m256i _mm512_cvtepi32_epi16(__m512i x) { /* the lower halves of lanes, with no saturation */
    const integers from = simde__m512i_to_private(x);
    simde__m256i_private to;
    for (int lane = 0; lane < 16; lane++) to.i16[lane] = (int16_t)from.u32[lane];
    return simde__m256i_from_private(to);
}
EMULATED __m256i _mm512_cvtpd_epi32(__m512d x) {
    return joined(_mm256_cvtpd_epi32(double_half(x, 0)), _mm256_cvtpd_epi32(double_half(x, 1)));
}
EMULATED __m512i _mm512_cvtpd_epi64(__m512d x) {
    const doubles from = simde__m512d_to_private(x);
    integers to;
    for (int lane = 0; lane < 8; lane++) to.i64[lane] = _mm_cvtsd_si64(_mm_set_sd(from.f64[lane]));
    return simde__m512i_from_private(to);
}
EMULATED __m256 _mm512_cvtpd_ps(__m512d x) {
    return _mm256_set_m128(_mm256_cvtpd_ps(double_half(x, 1)), _mm256_cvtpd_ps(double_half(x, 0)));
}
/* Towards zero, the one rounding that kernels ask for: to nearest, and one step back where that led away from zero. */
EMULATED __m256 _mm512_cvt_roundpd_ps(__m512d x, int rounding) {
    const doubles from = simde__m512d_to_private(x);
    simde__m256_private to = simde__m256_to_private(_mm512_cvtpd_ps(x));
    if (rounding != (_MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)) __builtin_trap();
    for (int lane = 0; lane < 8; lane++)
        to.i32[lane] -= __builtin_fabs((double)to.f32[lane]) > __builtin_fabs(from.f64[lane]);
    return simde__m256_from_private(to);
}
/* To the nearest, ties to even. */
EMULATED __m256i _mm512_cvtps_ph(__m512 x, int rounding) {
    if (rounding != (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) __builtin_trap();
    return joined(_mm256_cvtps_ph(float_half(x, 0), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                  _mm256_cvtps_ph(float_half(x, 1), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* Parts, permutations, shifts. */
EMULATED __m256 _mm512_extractf32x8_ps(__m512 x, int half) { return float_half(x, half); }
EMULATED __m256i _mm512_extracti32x8_epi32(__m512i x, int half) { return integer_half(x, half); }
EMULATED __m512 _mm512_permute_ps(__m512 x, int order) { /* within each quarter, two bits of `order` a lane */
    const floats from = simde__m512_to_private(x);
    floats to;
    for (int lane = 0; lane < 16; lane++) to.f32[lane] = from.f32[(lane & ~3) | (order >> lane % 4 * 2 & 3)];
    return simde__m512_from_private(to);
}
EMULATED __m512i _mm512_srai_epi32(__m512i x, int bits) {
    return of_integers(_mm256_srai_epi32(integer_half(x, 0), bits), _mm256_srai_epi32(integer_half(x, 1), bits));
}
EMULATED int64_t _mm512_reduce_add_epi64(__m512i x) {
    const integers from = simde__m512i_to_private(x);
    uint64_t sum = 0;
    for (int lane = 0; lane < 8; lane++) sum += from.u64[lane];
    return (int64_t)sum;
}
/* Lanes of the mask take the lowest lanes of x, in order. */
EMULATED __m512i _mm512_mask_expand_epi32(__m512i others, __mmask16 mask, __m512i x) {
    const integers from = simde__m512i_to_private(x);
    integers to = simde__m512i_to_private(others);
    for (int lane = 0, next = 0; lane < 16; lane++)
        if (mask >> lane & 1) to.i32[lane] = from.i32[next++];
    return simde__m512i_from_private(to);
}

/* Memory. */
EMULATED __m512i _mm512_mask_loadu_epi32(__m512i others, __mmask16 mask, const void* at) {
    integers to = simde__m512i_to_private(others);
    for (int lane = 0; lane < 16; lane++)
        if (mask >> lane & 1) __builtin_memcpy((char*)&to + 4 * lane, (const char*)at + 4 * lane, 4);
    return simde__m512i_from_private(to);
}
EMULATED void _mm512_stream_si512(void* at, __m512i x) { /* at 64 bytes, which two halves alone would not ask for */
    if ((uintptr_t)at % 64) __builtin_trap();
    for (int half = 0; half < 2; half++) _mm256_stream_si256((__m256i*)at + half, integer_half(x, half));
}

#if defined(__AES__)
EMULATED __m512i _mm512_aesenc_epi128(__m512i x, __m512i key) {
    integers to;
    for (int i = 0; i < 4; i++) to.m128i[i] = _mm_aesenc_si128(integer_quarter(x, i), integer_quarter(key, i));
    return simde__m512i_from_private(to);
}
EMULATED __m512i _mm512_aesenclast_epi128(__m512i x, __m512i key) {
    integers to;
    for (int i = 0; i < 4; i++) to.m128i[i] = _mm_aesenclast_si128(integer_quarter(x, i), integer_quarter(key, i));
    return simde__m512i_from_private(to);
}
#endif
