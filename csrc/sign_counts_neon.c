/* sign_counts with NEON (64-bit Arm): a comparison that holds is -1 in its lane. */
#include <arm_neon.h>

#include "impl.h"
#include "widen_neon.h"

INLINE int signs(const void* const* rows, int count, const float* center, int64_t length, int32_t* votes, int first,
                 fc_dtype type, int64_t* done) {
    const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
    uint32x4_t peak = vdupq_n_u32(0);
    int64_t k = 0;
    for (; k + 4 <= length; k += 4) {
        const float32x4_t middle = center ? vld1q_f32(center + k) : vdupq_n_f32(0.0f);
        int32x4_t vote = first ? vdupq_n_s32(0) : vld1q_s32(votes + k);
        for (int r = 0; r < count; r++) {
            const float32x4_t x = widen4_f32((const char*)rows[r] + k * fc_itemsize(type), type);
            const int32x4_t above = vreinterpretq_s32_u32(vcgtq_f32(x, middle));
            const int32x4_t below = vreinterpretq_s32_u32(vcltq_f32(x, middle));
            vote = vaddq_s32(vote, vsubq_s32(below, above));
            peak = vmaxq_u32(peak, vandq_u32(vreinterpretq_u32_f32(x), magnitude));
        }
        vst1q_s32(votes + k, vote);
    }
    *done = k;
    return vmaxvq_u32(peak) >= 0x7f800000;
}

#define SIGNS(name, type)                                                                                          \
    int fc_sign_counts_##name##_neon(const void* const* rows, int count, const float* center, int64_t length,      \
                                     int32_t* votes, int first) {                                                  \
        int64_t k;                                                                                                 \
        const int bad = signs(rows, count, center, length, votes, first, type, &k);                                \
        const void* rest[FC_INTEGER_GROUP];                                                                        \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;                    \
        return bad |                                                                                               \
               fc_sign_counts_##name##_ref(rest, count, center ? center + k : NULL, length - k, votes + k, first); \
    }
SIGNS(f32, FC_F32)
SIGNS(f16, FC_F16)
SIGNS(bf16, FC_BF16)
