/* hadamard with AVX2 and FMA. In a vector, a lane takes its partner's number and adds or subtracts its own: a product
 * with 1 or -1 is exact, so the fused step rounds as the sum or difference does. */
#include <immintrin.h>

#include "impl.h"

typedef __m256 vec;
#define LANES 8
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ALL _mm256_set1_ps
#define NAME(pass) fc_hadamard_##pass##_avx2

static inline __attribute__((always_inline)) __m256 WITHIN(__m256 v) {
    v = _mm256_fmadd_ps(v, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), _mm256_permute_ps(v, 0xb1));
    v = _mm256_fmadd_ps(v, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), _mm256_permute_ps(v, 0x4e));
    return _mm256_fmadd_ps(v, _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), _mm256_permute2f128_ps(v, v, 1));
}

#include "hadamard.h"
