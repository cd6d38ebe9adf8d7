/* hadamard with AVX-512 F. In a vector, a lane takes its partner's number and adds or subtracts its own: a product with
 * 1 or -1 is exact, so the fused step rounds as the sum or difference does. */
#include <immintrin.h>

#include "impl.h"

typedef __m512 vec;
#define LANES 16
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ALL _mm512_set1_ps
#define NAME(pass) fc_hadamard_##pass##_avx512

static inline __attribute__((always_inline)) __m512 signs(int h) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 upper = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(h));
    return _mm512_mask_blend_ps(upper, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
}
static inline __attribute__((always_inline)) __m512 WITHIN(__m512 v) {
    v = _mm512_fmadd_ps(v, signs(1), _mm512_permute_ps(v, 0xb1));
    v = _mm512_fmadd_ps(v, signs(2), _mm512_permute_ps(v, 0x4e));
    v = _mm512_fmadd_ps(v, signs(4), _mm512_shuffle_f32x4(v, v, 0xb1));
    return _mm512_fmadd_ps(v, signs(8), _mm512_shuffle_f32x4(v, v, 0x4e));
}

#include "hadamard.h"
