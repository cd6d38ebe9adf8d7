/* gram in portable C: packing and the tile of products. fmaf is one rounding on every machine. */
#include "impl.h"

#define PACK(name, load)                                                                                    \
    void fc_gram_pack_##name##_ref(const void* const* rows, int count, const float* center, int64_t length, \
                                   float* panel, uint32_t* peak) {                                          \
        memset(peak, 0, FC_GRAM_PANEL * sizeof *peak);                                                      \
        for (int64_t k = 0; k < length; k++)                                                                \
            for (int r = 0; r < FC_GRAM_PANEL; r++) {                                                       \
                const float value = r < count ? load(rows[r], k) - (center ? center[k] : 0.0f) : 0.0f;      \
                const uint32_t bits = fc_bits(value) & 0x7fffffff;                                          \
                panel[k * FC_GRAM_PANEL + r] = value;                                                       \
                peak[r] = bits > peak[r] ? bits : peak[r];                                                  \
            }                                                                                               \
    }
PACK(f32, fc_load_f32)
PACK(f16, fc_load_f16)
PACK(bf16, fc_load_bf16)

void fc_gram_tile_ref(const float* a, int rows, const float* b, int64_t panel_stride, int halves, int64_t length,
                      double* sum, int64_t stride, const double* row_scale, const double* column_scale,
                      const char* const ahead[2]) {
    (void)ahead; /* left to the hardware */
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < halves * FC_GRAM_PANEL / 2; c++) {
            const float* column = b + c / FC_GRAM_PANEL * panel_stride + c % FC_GRAM_PANEL;
            float total = 0.0f, dot = 0.0f;
            for (int64_t k = 0; k < length; k++) {
                dot = fmaf(a[k * FC_GRAM_PANEL + r], column[k * FC_GRAM_PANEL], dot);
                if ((k + 1) % FC_GRAM_RUN && k + 1 < length) continue;
                total = k < FC_GRAM_RUN ? dot : total + dot;
                dot = 0.0f;
            }
            sum[r * stride + c] += row_scale ? (double)total * (row_scale[r] * column_scale[c]) : (double)total;
        }
}

#define TO_F32(name, load)                                                     \
    void fc_to_f32_##name##_ref(const void* row, int64_t length, float* out) { \
        for (int64_t k = 0; k < length; k++) out[k] = load(row, k);            \
    }
TO_F32(f32, fc_load_f32)
TO_F32(f16, fc_load_f16)
TO_F32(bf16, fc_load_bf16)
