/* AES-256-CTR with VAES and AVX-512: four blocks a vector, all round keys in registers. */
#include <immintrin.h>

#include "impl.h"

#define vec __m512i
enum { BLOCKS = 4 };
#define EACH(x) _mm512_broadcast_i32x4(x)
#define COUNT() _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3)
#define ADD _mm512_add_epi32
#define SUB _mm512_sub_epi32
#define ADD64 _mm512_add_epi64
#define SUB64 _mm512_sub_epi64
#define XOR _mm512_xor_si512
#define AND _mm512_and_si512
#define SHUFFLE _mm512_shuffle_epi8
#define ROUND _mm512_aesenc_epi128
#define LAST _mm512_aesenclast_epi128
#define LOAD _mm512_loadu_si512
#define STORE _mm512_storeu_si512
#define STREAM(at, x) _mm512_stream_si512((void*)(at), x)
#define real __m512d
#define REAL _mm512_set1_pd
#define finite __m512
#define FINITE() _mm512_setzero_ps()
#define IS_FINITE(x) (_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) == 0)

/* 8 fp32 quantised, in the low 32 bits of each lane: added to 1.5 * 2^52, integers end up there. */
INLINE __m512i rounded(const char* values, __m512d by, __m512d most) {
    enum { SMALLER_SIZE = 2 }; /* under the sign of the first operand */
    const __m512d x = _mm512_cvtps_pd(_mm256_loadu_ps((const float*)(const void*)values));
    const __m512d q = _mm512_range_pd(_mm512_mul_pd(x, by), most, SMALLER_SIZE);
    return _mm512_castpd_si512(_mm512_add_pd(q, _mm512_set1_pd(0x1.8p52)));
}

INLINE __m512i quantised(const char* values, __m512d by, __m512d most, __m512* bad) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *bad = _mm512_fmadd_ps(_mm512_loadu_ps(values), _mm512_setzero_ps(), *bad);
    return _mm512_permutex2var_epi32(rounded(values, by, most), even, rounded(values + 32, by, most));
}

#include "aes256ctr.h"
AES256CTR(vaes)
