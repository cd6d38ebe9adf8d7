/* clip_noise_accumulate in portable C: integers, so the order of additions is free. */
#include "impl.h"

#define ACCUMULATE(name, load)                                                                           \
    void fc_clip_noise_accumulate_##name##_ref(const void* const* rows, const double* scales, int count, \
                                               int64_t length, int64_t* sum) {                           \
        for (int64_t k = 0; k < length; k++)                                                             \
            for (int r = 0; r < count; r++) sum[k] += llrint(scales[r] * (double)load(rows[r], k));      \
    }
ACCUMULATE(f32, fc_load_f32)
ACCUMULATE(f16, fc_load_f16)
ACCUMULATE(bf16, fc_load_bf16)
