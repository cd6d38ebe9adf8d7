/* The tile of products of LoRA factors in portable C: the truth for every other ISA. fmaf is one rounding everywhere.
 */
#include "impl.h"

void fc_lora_tile_ref(const float* b, const float* a, int64_t length, double* acc, int64_t stride, int first) {
    for (int o = 0; o < FC_LORA_ROWS; o++)
        for (int c = 0; c < FC_LORA_COLUMNS; c++) {
            float sum = 0.0f;
            for (int64_t k = 0; k < length; k++) sum = fmaf(b[k * FC_LORA_ROWS + o], a[k * FC_LORA_COLUMNS + c], sum);
            double* to = acc + o * stride + c;
            *to = first ? (double)sum : *to + (double)sum;
        }
}
