/* ChaCha20 with NEON: 4 blocks at a time. */
#include <arm_neon.h>

#define vec uint32x4_t
enum { LANES = 4 };
#define ADD vaddq_u32
#define SUB vsubq_u32
#define AS64(f, x, y) vreinterpretq_u32_u64(f(vreinterpretq_u64_u32(x), vreinterpretq_u64_u32(y)))
#define ADD64(x, y) AS64(vaddq_u64, x, y)
#define SUB64(x, y) AS64(vsubq_u64, x, y)
#define XOR veorq_u32
#define ROTATE(x, n)                                                          \
    ((n) == 16 ? vreinterpretq_u32_u16(vrev32q_u16(vreinterpretq_u16_u32(x))) \
               : vsriq_n_u32(vshlq_n_u32(x, n), x, 32 - (n)))
#define SAME(x) vdupq_n_u32(x)
#define COUNT() ((uint32x4_t){0, 1, 2, 3})
#define LOAD(at) vreinterpretq_u32_u8(vld1q_u8((const uint8_t*)(at)))
#define STORE(at, x) vst1q_u8((uint8_t*)(at), vreinterpretq_u8_u32(x))

static inline __attribute__((always_inline)) void transpose(uint32x4_t x[16]) {
    uint32x4_t t[16];
    for (int g = 0; g < 4; g++) { /* words 4g to 4g + 3 */
        const uint32x4x2_t a = vtrnq_u32(x[4 * g], x[4 * g + 1]), b = vtrnq_u32(x[4 * g + 2], x[4 * g + 3]);
        t[g] = vcombine_u32(vget_low_u32(a.val[0]), vget_low_u32(b.val[0]));
        t[4 + g] = vcombine_u32(vget_low_u32(a.val[1]), vget_low_u32(b.val[1]));
        t[8 + g] = vcombine_u32(vget_high_u32(a.val[0]), vget_high_u32(b.val[0]));
        t[12 + g] = vcombine_u32(vget_high_u32(a.val[1]), vget_high_u32(b.val[1]));
    }
    for (int i = 0; i < 16; i++) x[i] = t[i];
}

#include "chacha20.h"
CHACHA20(neon)
