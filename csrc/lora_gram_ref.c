/* The tile of inner products of LoRA terms in portable C. fma rounds as every ISA does, also where a product of fp64
 * factors is not exact. */
#include "impl.h"

void fc_lora_gram_tile_ref(const double* rows, const double* columns, int64_t panel_stride, int wide, int64_t length,
                           double* sum, int64_t stride, int first) {
    for (int r = 0; r < FC_LORA_PANEL; r++)
        for (int c = 0; c < wide * FC_LORA_PANEL; c++) {
            const double* column = columns + c / FC_LORA_PANEL * panel_stride + c % FC_LORA_PANEL;
            double dot = first ? 0.0 : sum[r * stride + c];
            for (int64_t k = 0; k < length; k++) dot = fma(rows[k * FC_LORA_PANEL + r], column[k * FC_LORA_PANEL], dot);
            sum[r * stride + c] = dot;
        }
}
