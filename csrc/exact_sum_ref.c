/* exact_sum in portable C: a cascade of error-free additions (Knuth's TwoSum: a + b = s + e exactly). Products of fp32
 * numbers are multiples of 2^-298 below 2^256, so nothing here overflows or vanishes. */
#include "impl.h"

#define EXACT(name, load)                                                                                             \
    int fc_exact_sum_##name##_ref(const void* row, double weight, int64_t length, double* const* levels, int depth) { \
        int left = 0;                                                                                                 \
        for (int64_t k = 0; k < length; k++) {                                                                        \
            double rest = weight * (double)load(row, k);                                                              \
            for (int l = 0; l < depth && rest != 0.0; l++) {                                                          \
                const double old = levels[l][k], sum = old + rest, part = sum - old;                                  \
                rest = (old - (sum - part)) + (rest - part);                                                          \
                levels[l][k] = sum;                                                                                   \
            }                                                                                                         \
            if (rest != 0.0) {                                                                                        \
                levels[depth][k] = rest;                                                                              \
                left = 1;                                                                                             \
            }                                                                                                         \
        }                                                                                                             \
        return left;                                                                                                  \
    }
EXACT(f32, fc_load_f32)
EXACT(f16, fc_load_f16)
EXACT(bf16, fc_load_bf16)
