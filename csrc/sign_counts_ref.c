/* sign_counts in portable C. fp32 holds every row dtype exactly, and so do comparisons of it. */
#include "impl.h"

#define SIGNS(name, load)                                                                                    \
    int fc_sign_counts_##name##_ref(const void* const* rows, int count, const float* center, int64_t length, \
                                    int32_t* votes, int first) {                                             \
        int bad = 0;                                                                                         \
        for (int64_t k = 0; k < length; k++) {                                                               \
            const float middle = center ? center[k] : 0.0f;                                                  \
            int32_t vote = first ? 0 : votes[k];                                                             \
            for (int r = 0; r < count; r++) {                                                                \
                const float x = load(rows[r], k);                                                            \
                vote += (x > middle) - (x < middle);                                                         \
                bad |= (fc_bits(x) & 0x7f800000) == 0x7f800000;                                              \
            }                                                                                                \
            votes[k] = vote;                                                                                 \
        }                                                                                                    \
        return bad;                                                                                          \
    }
SIGNS(f32, fc_load_f32)
SIGNS(f16, fc_load_f16)
SIGNS(bf16, fc_load_bf16)
