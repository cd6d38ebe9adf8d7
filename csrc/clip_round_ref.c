/* clip_round in portable C: each product is exact in fp64, so its rounding to an integer is the only one. */
#include "impl.h"

#define ROUND(name, load)                                                                                      \
    int64_t fc_clip_round_##name##_ref(const void* row, double scale, int64_t length, int32_t* out) {          \
        int64_t squares = 0;                                                                                   \
        for (int64_t k = 0; k < length; k++) {                                                                 \
            const int64_t q = llrint(scale * (double)load(row, k)); /* to even: fc_enter_ieee sets the mode */ \
            out[k] = (int32_t)q;                                                                               \
            squares += q * q;                                                                                  \
        }                                                                                                      \
        return squares;                                                                                        \
    }
ROUND(f32, fc_load_f32)
ROUND(f16, fc_load_f16)
ROUND(bf16, fc_load_bf16)
