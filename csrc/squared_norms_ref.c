/* squared_norms in portable C: lanes and folds as in fedcore/reference/squared_norms.py. */
#include "impl.h"

static double fold(double* lanes) {
    for (int width = FC_NORM_LANES / 2; width; width /= 2)
        for (int l = 0; l < width; l++) lanes[l] += lanes[l + width];
    return lanes[0];
}

#define BLOCK_NORM(name, load)                                                                   \
    double fc_squared_norms_##name##_ref(const void* row, const float* center, int64_t length) { \
        double lanes[FC_NORM_LANES] = {0};                                                       \
        for (int64_t k = 0; k < length; k++) {                                                   \
            double value = (double)load(row, k) - (center ? (double)center[k] : 0.0);            \
            lanes[k % FC_NORM_LANES] += value * value;                                           \
        }                                                                                        \
        return fold(lanes);                                                                      \
    }
BLOCK_NORM(f32, fc_load_f32)
BLOCK_NORM(f16, fc_load_f16)
BLOCK_NORM(bf16, fc_load_bf16)
