/* Draws from a table with NEON, 8 at a time. */
#include <arm_neon.h>

#include "impl.h"

enum { LANES = 2, AT_ONCE = 4 };

void fc_discrete_gaussian_neon(const fc_gaussian_table* table, const uint64_t* v, const uint64_t* w, int64_t stride,
                               int64_t* sum) {
    for (int i = 0; i < FC_GAUSSIAN_CHUNK; i += LANES * AT_ONCE) {
        uint64x2_t high[AT_ONCE], low[AT_ONCE], count[AT_ONCE];
        for (int u = 0; u < AT_ONCE; u++) {
            high[u] = vld1q_u64(v + i + LANES * u);
            low[u] = vshlq_n_u64(vld1q_u64(w + i + LANES * u), 1);
            count[u] = vdupq_n_u64(0);
        }
        for (int64_t k = 0; k < table->entries; k++) {
            const uint64x2_t first = vdupq_n_u64(table->first[k]), second = vdupq_n_u64(table->second[k]);
            for (int u = 0; u < AT_ONCE; u++) { /* a mask is -1 where it holds */
                const uint64x2_t carried = vsubq_u64(first, vcltq_u64(low[u], second));
                count[u] = vsubq_u64(count[u], vcltq_u64(high[u], carried));
            }
        }
        for (int u = 0; u < AT_ONCE; u++) {
            const int64x2_t minus = vshrq_n_s64(vreinterpretq_s64_u64(vld1q_u64(w + i + LANES * u)), 63);
            const int64x2_t drawn = vsubq_s64(veorq_s64(vreinterpretq_s64_u64(count[u]), minus), minus);
            const int32x2_t narrow = vmovn_s64(drawn);
            vst1q_s64(sum + i + LANES * u,
                      vaddq_s64(vld1q_s64(sum + i + LANES * u), vmull_n_s32(narrow, (int32_t)stride)));
        }
    }
}
