/* hadamard with NEON (64-bit Arm). In a vector, a lane takes its partner's number and adds or subtracts its own: a
 * product with 1 or -1 is exact, so the fused step rounds as the sum or difference does. */
#include <arm_neon.h>

#include "impl.h"

typedef float32x4_t vec;
#define LANES 4
#define LOAD vld1q_f32
#define STORE vst1q_f32
#define ALL vdupq_n_f32
#define NAME(pass) fc_hadamard_##pass##_neon

static inline __attribute__((always_inline)) float32x4_t WITHIN(float32x4_t v) {
    const float32x4_t first = {1, -1, 1, -1}, second = {1, 1, -1, -1};
    v = vfmaq_f32(vrev64q_f32(v), v, first);
    return vfmaq_f32(vextq_f32(v, v, 2), v, second);
}

#include "hadamard.h"
