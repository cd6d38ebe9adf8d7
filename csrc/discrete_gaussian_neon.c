/* Draws from a table with NEON, 16 at a time. */
#include <arm_neon.h>

#include "discrete_gaussian.h"

enum { LANES = 4, AT_ONCE = 4 };

INLINE void add_to(int64_t* out, int32x2_t count, int32x2_t stride) {
    vst1q_s64(out, vmlal_s32(vld1q_s64(out), count, stride));
}

/* Draw `draw` of 16 samples added to theirs; ties to those before them. Masks are -1 where they hold. */
INLINE void add_draws(const fc_gaussian_table* table, int64_t draw, int64_t sample, const uint32_t* words,
                      fc_gaussian_ties* ties, int64_t* out) {
    const int32x2_t stride = vdup_n_s32((int32_t)table->strides[draw]);
    const uint32x4_t one = vdupq_n_u32(1);
    uint32x4_t x[AT_ONCE], v[AT_ONCE], count[AT_ONCE], tie[AT_ONCE];
    for (int u = 0; u < AT_ONCE; u++) {
        x[u] = vld1q_u32(words + LANES * u);
        v[u] = vbicq_u32(x[u], one);
        count[u] = tie[u] = vdupq_n_u32(0);
    }
    for (int64_t k = 0, first = 1; k < table->entries && first; k++) { /* as far as the first word of 0, the last one */
        first = table->first[k];
        const uint32x4_t entry = vdupq_n_u32((uint32_t)first);
        for (int u = 0; u < AT_ONCE; u++) {
            count[u] = vsubq_u32(count[u], vcltq_u32(v[u], entry));
            tie[u] = vorrq_u32(tie[u], vceqq_u32(v[u], entry));
        }
    }
    for (int u = 0; u < AT_ONCE; u++) {
        const uint32x4_t sign = vandq_u32(x[u], one);
        const int32x4_t minus = vnegq_s32(vreinterpretq_s32_u32(sign));
        const int32x4_t drawn = vsubq_s32(veorq_s32(vreinterpretq_s32_u32(count[u]), minus), minus);
        uint32_t records[LANES], tied[LANES];
        add_to(out + LANES * u, vget_low_s32(drawn), stride);
        add_to(out + LANES * u + LANES / 2, vget_high_s32(drawn), stride);
        vst1q_u32(records, vorrq_u32(vshlq_n_u32(sign, FC_TIE_SIGN), vshlq_n_u32(count[u], FC_TIE_COUNT)));
        vst1q_u32(tied, vandq_u32(tie[u], one));
        for (int k = 0; k < LANES; k++) fc_note(ties, fc_tie_at(sample + LANES * u + k, draw) | records[k], tied[k]);
    }
}

static void draw(const fc_gaussian_table* table, const uint32_t* arranged, const uint32_t* words, int64_t at,
                 fc_gaussian_ties* ties, int64_t* out) {
    (void)arranged;
    memset(out, 0, FC_GAUSSIAN_CHUNK * sizeof *out);
    for (int64_t group = 0; group < FC_GAUSSIAN_CHUNK; group += FC_GAUSSIAN_GROUP)
        for (int64_t draw = 0; draw < table->draws; draw++)
            for (int64_t i = group; i < group + FC_GAUSSIAN_GROUP; i += LANES * AT_ONCE)
                add_draws(table, draw, at + i, words + draw * FC_GAUSSIAN_CHUNK + i, ties, out + i);
}

const fc_gaussian_kernels fc_discrete_gaussian_neon = {NULL, draw, fc_settle};
