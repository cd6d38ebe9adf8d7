/* sign_counts with NEON (64-bit Arm): a comparison that holds is -1 in its lane. */
#include <arm_neon.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))

/* 4 columns as fp32. Bytes are loaded, so that any alignment is read safely. */
INLINE float32x4_t widen(const char* row, fc_dtype type) {
    if (type == FC_F32) return vreinterpretq_f32_u8(vld1q_u8((const uint8_t*)row));
    const uint16x4_t half = vreinterpret_u16_u8(vld1_u8((const uint8_t*)row));
    if (type == FC_F16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

INLINE int signs(const void* const* rows, int count, const float* center, int64_t length, int32_t* votes, int first,
                 fc_dtype type, int64_t* done) {
    const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
    uint32x4_t peak = vdupq_n_u32(0);
    int64_t k = 0;
    for (; k + 4 <= length; k += 4) {
        const float32x4_t middle = center ? vld1q_f32(center + k) : vdupq_n_f32(0.0f);
        int32x4_t vote = first ? vdupq_n_s32(0) : vld1q_s32(votes + k);
        for (int r = 0; r < count; r++) {
            const float32x4_t x = widen((const char*)rows[r] + k * fc_itemsize(type), type);
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
        const void* rest[FC_WS_GROUP];                                                                             \
        for (int r = 0; r < count; r++) rest[r] = (const char*)rows[r] + fc_itemsize(type) * k;                    \
        return bad |                                                                                               \
               fc_sign_counts_##name##_ref(rest, count, center ? center + k : NULL, length - k, votes + k, first); \
    }
SIGNS(f32, FC_F32)
SIGNS(f16, FC_F16)
SIGNS(bf16, FC_BF16)
