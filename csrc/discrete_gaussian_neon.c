/* Draws from a table with NEON, 8 at a time. */
#include <arm_neon.h>

#include "impl.h"

#define INLINE static inline __attribute__((always_inline))
enum { LANES = 2, AT_ONCE = 4, WORD = 64 };

/* count * by of each lane, both of 32 bits. */
INLINE int64x2_t product(uint64x2_t count, int64x2_t by) {
    return vmull_s32(vmovn_s64(vreinterpretq_s64_u64(count)), vmovn_s64(by));
}

/* Draw `draw` of 8 samples added to their sums; where it ties, its words and strides become those of the tie. Masks are
 * -1 where they hold. */
INLINE void add_draw(const fc_gaussian_table* table, int64_t draw, const uint64_t* v, const uint64_t* w,
                     int64x2_t sum[AT_ONCE], uint64x2_t tied[AT_ONCE], int64x2_t times[AT_ONCE]) {
    const int64x2_t stride = vdupq_n_s64(table->strides[draw]), sign = vdupq_n_s64(draw);
    uint64x2_t x[AT_ONCE], count[AT_ONCE], tie[AT_ONCE];
    for (int u = 0; u < AT_ONCE; u++) {
        x[u] = vld1q_u64(v + LANES * u);
        count[u] = tie[u] = vdupq_n_u64(0);
    }
    for (int64_t k = 0; k < table->entries; k++) {
        const uint64x2_t first = vdupq_n_u64(table->first[k]);
        for (int u = 0; u < AT_ONCE; u++) {
            count[u] = vsubq_u64(count[u], vcltq_u64(x[u], first));
            tie[u] = vorrq_u64(tie[u], vceqq_u64(x[u], first));
        }
    }
    for (int u = 0; u < AT_ONCE; u++) {
        const uint64x2_t at = vshlq_u64(vld1q_u64(w + LANES * u), sign);
        const int64x2_t minus = vshrq_n_s64(vreinterpretq_s64_u64(at), WORD - 1);
        const int64x2_t by = vsubq_s64(veorq_s64(stride, minus), minus);
        sum[u] = vaddq_s64(sum[u], product(count[u], by));
        tied[u] = vbslq_u64(tie[u], x[u], tied[u]);
        times[u] = vbslq_s64(tie[u], by, times[u]);
    }
}

void fc_discrete_gaussian_neon(const fc_gaussian_table* table, const uint64_t* arranged, const uint64_t* words,
                               int64_t* out) {
    (void)arranged;
    const uint64_t* w = words + table->draws * FC_GAUSSIAN_CHUNK;
    for (int i = 0; i < FC_GAUSSIAN_CHUNK; i += LANES * AT_ONCE) {
        int64x2_t sum[AT_ONCE], times[AT_ONCE];
        uint64x2_t tied[AT_ONCE], low[AT_ONCE], count[AT_ONCE];
        for (int u = 0; u < AT_ONCE; u++) {
            sum[u] = times[u] = vdupq_n_s64(0);
            tied[u] = count[u] = vdupq_n_u64(0);
            low[u] = vshlq_n_u64(vld1q_u64(w + i + LANES * u), FC_GAUSSIAN_DRAWS);
        }
        for (int64_t draw = 0; draw < table->draws; draw++)
            add_draw(table, draw, words + draw * FC_GAUSSIAN_CHUNK + i, w + i, sum, tied, times);
        for (int64_t k = 0; k < table->entries; k++) {
            const uint64x2_t first = vdupq_n_u64(table->first[k]), second = vdupq_n_u64(table->second[k]);
            for (int u = 0; u < AT_ONCE; u++)
                count[u] = vsubq_u64(count[u], vandq_u64(vcltq_u64(low[u], second), vceqq_u64(tied[u], first)));
        }
        for (int u = 0; u < AT_ONCE; u++)
            vst1q_s64(out + i + LANES * u, vaddq_s64(sum[u], product(count[u], times[u])));
    }
}
