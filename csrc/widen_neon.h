/* NEON: columns of rows in fp32, fp16 or bf16, widened; `type` is a constant at each call. */
#ifndef FEDCORE_WIDEN_NEON_H
#define FEDCORE_WIDEN_NEON_H
#include <arm_neon.h>

#include "impl.h"

/* 4 columns as fp32. Bytes are loaded, so that any alignment is read safely. */
INLINE float32x4_t widen4_f32(const char* row, fc_dtype type) {
    if (type == FC_F32) return vreinterpretq_f32_u8(vld1q_u8((const uint8_t*)row));
    const uint16x4_t half = vreinterpret_u16_u8(vld1_u8((const uint8_t*)row));
    if (type == FC_F16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}
#endif
