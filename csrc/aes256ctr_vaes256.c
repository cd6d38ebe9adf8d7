/* AES-256-CTR with VAES where there is no AVX-512: two blocks a vector. */
#include <immintrin.h>

#include "impl.h"

#define vec __m256i
enum { BLOCKS = 2 };
#define EACH(x) _mm256_broadcastsi128_si256(x)
#define COUNT() _mm256_setr_epi32(0, 0, 0, 0, 0, 0, 0, 1)
#define ADD _mm256_add_epi32
#define SUB _mm256_sub_epi32
#define ADD64 _mm256_add_epi64
#define SUB64 _mm256_sub_epi64
#define XOR _mm256_xor_si256
#define AND _mm256_and_si256
#define SHUFFLE _mm256_shuffle_epi8
#define ROUND _mm256_aesenc_epi128
#define LAST _mm256_aesenclast_epi128
#define LOAD(at) _mm256_loadu_si256((const __m256i*)(const void*)(at))
#define STORE(at, x) _mm256_storeu_si256((__m256i*)(void*)(at), x)
#define STREAM(at, x) _mm256_stream_si256((__m256i*)(void*)(at), x)
#define finite __m256
#define FINITE() _mm256_setzero_ps()
#define IS_FINITE(x) (_mm256_testz_si256(_mm256_castps_si256(x), _mm256_castps_si256(x)))
#include "aes256ctr_avx2.h"

INLINE __m256i quantised(const char* values, __m256d by, __m256d most, __m256* bad) {
    const __m256 x = _mm256_loadu_ps((const float*)(const void*)values);
    *bad = _mm256_or_ps(*bad, _mm256_sub_ps(x, x)); /* 0 where x is finite, and NaN elsewhere */
    const __m128i low = rounded(_mm256_castps256_ps128(x), by, most);
    return _mm256_set_m128i(rounded(_mm256_extractf128_ps(x, 1), by, most), low);
}

#include "aes256ctr.h"
AES256CTR(vaes256)
