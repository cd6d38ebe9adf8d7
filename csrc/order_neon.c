/* Order statistics with NEON (64-bit Arm): integer keys, 4 columns of fp32 or 8 of a 16-bit type a vector. */
#include <arm_neon.h>

#include "impl.h"
#include "order_ahead.h"

#define D float64x2_t
#define ZERO vdupq_n_f64(0.0)
#define ADD vaddq_f64
#define SUB vsubq_f64
#define ABS vabsq_f64
#define HALVE(x) vmulq_n_f64(x, 0.5)
#define LESS vcltq_f64
#define AT_MOST vcleq_f64
#define BOTH vandq_u64
#define ADD_IF(mask, total, x) vaddq_f64(total, vreinterpretq_f64_u64(vandq_u64(mask, vreinterpretq_u64_f64(x))))
#define SPLAT vdupq_n_f64
#define STORE vst1q_f64

/* The least and the greatest key seen: Inf and NaN lie at the ends of the order. */
typedef struct {
    int32x4_t low, high;
} state_32;
typedef struct {
    int16x8_t low, high;
} state_16;

static inline state_32 begin_32(void) { return (state_32){vdupq_n_s32(0), vdupq_n_s32(0)}; }
static inline state_16 begin_16(void) { return (state_16){vdupq_n_s16(0), vdupq_n_s16(0)}; }
static inline int bad_f32(const state_32* state) {
    return vmaxvq_s32(state->high) >= 0x7f800000 || vminvq_s32(state->low) <= ~0x7f800000;
}
static inline int bad_f16(const state_16* state) {
    return vmaxvq_s16(state->high) >= 0x7c00 || vminvq_s16(state->low) <= ~0x7c00;
}
static inline int bad_bf16(const state_16* state) {
    return vmaxvq_s16(state->high) >= 0x7f80 || vminvq_s16(state->low) <= ~0x7f80;
}

/* The maps between bits and keys are their own inverses. */
static inline int32x4_t key_32(int32x4_t x) {
    return veorq_s32(x, vandq_s32(vshrq_n_s32(x, 31), vdupq_n_s32(0x7fffffff)));
}
static inline int16x8_t key_16(int16x8_t x) { return veorq_s16(x, vandq_s16(vshrq_n_s16(x, 15), vdupq_n_s16(0x7fff))); }
/* Bytes are loaded, so that any alignment is read safely. */
static inline uint8x16_t load(const char* at) { return vld1q_u8((const uint8_t*)at); }

static inline D widen_f32(int32x4_t key, int part) {
    const float32x4_t x = vreinterpretq_f32_s32(key_32(key));
    return part ? vcvt_high_f64_f32(x) : vcvt_f64_f32(vget_low_f32(x));
}
static inline D widen_half(float32x4_t x, int part) {
    return part & 1 ? vcvt_high_f64_f32(x) : vcvt_f64_f32(vget_low_f32(x));
}
static inline D widen_f16(int16x8_t key, int part) {
    const float16x8_t x = vreinterpretq_f16_s16(key_16(key));
    return widen_half(part & 2 ? vcvt_high_f32_f16(x) : vcvt_f32_f16(vget_low_f16(x)), part);
}
static inline D widen_bf16(int16x8_t key, int part) {
    const uint16x8_t x = vreinterpretq_u16_s16(key_16(key));
    const uint16x4_t half = part & 2 ? vget_high_u16(x) : vget_low_u16(x);
    return widen_half(vreinterpretq_f32_u32(vshll_n_u16(half, 16)), part);
}

#define CE(a, b)                    \
    {                               \
        const V lesser = MIN(a, b); \
        b = MAX(a, b);              \
        a = lesser;                 \
    }
#define CX CE
#define CHECK(a, b)
#define ENDS(least, most)                \
    state->low = MIN(state->low, least); \
    state->high = MAX(state->high, most);

#define KEY(name) name##_32
#define FN KEY
#define V int32x4_t
#define LANES 4
#define SIZE 4
#define PARTS 2
#define LOAD(i) key_32(vreinterpretq_s32_u8(load(rows[i] + offset)))
#define MIN vminq_s32
#define MAX vmaxq_s32
#define GREATEST vdupq_n_s32(INT32_MAX)
#define LEAST vdupq_n_s32(INT32_MIN)
#include "order_sort.h"
#undef FN
#define FN(name) name##_f32
#define WIDEN widen_f32
#include "order_statistics.h"
#undef KEY
#undef FN
#undef V
#undef LANES
#undef SIZE
#undef PARTS
#undef LOAD
#undef MIN
#undef MAX
#undef GREATEST
#undef LEAST
#undef WIDEN

#define KEY(name) name##_16
#define FN KEY
#define V int16x8_t
#define LANES 8
#define SIZE 2
#define PARTS 4
#define LOAD(i) key_16(vreinterpretq_s16_u8(load(rows[i] + offset)))
#define MIN vminq_s16
#define MAX vmaxq_s16
#define GREATEST vdupq_n_s16(INT16_MAX)
#define LEAST vdupq_n_s16(INT16_MIN)
#include "order_sort.h"
#undef FN

#define FN(name) name##_f16
#define WIDEN widen_f16
#include "order_statistics.h"
#undef FN
#undef WIDEN

#define FN(name) name##_bf16
#define WIDEN widen_bf16
#include "order_statistics.h"

#define ORDER(name, lanes)                                                                                     \
    int fc_order_##name##_neon(const void* const* rows, int64_t n, int64_t offset, int64_t length,             \
                               fc_statistic statistic, int64_t f, void* scratch, double* acc) {                \
        if (length < lanes) return fc_order_##name##_ref(rows, n, offset, length, statistic, f, scratch, acc); \
        return run_##name(rows, n, offset, length, statistic, f, scratch, acc);                                \
    }
ORDER(f32, 4)
ORDER(f16, 8)
ORDER(bf16, 8)
