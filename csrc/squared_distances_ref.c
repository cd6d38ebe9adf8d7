/* Portable kernel of squared_distances, and for the columns that other ISAs leave over. */
#include "impl.h"

void fc_pair_squares_ref(const void* const* a, const void* const* b, int wide, int64_t length, double* sum) {
    for (int p = 0; p < FC_PAIRS; p++) {
        double total = sum[p];
        for (int64_t k = 0; k < length; k++) {
            const double x = wide ? ((const double*)a[p])[k] : (double)((const float*)a[p])[k];
            const double y = wide ? ((const double*)b[p])[k] : (double)((const float*)b[p])[k];
            total += (x - y) * (x - y);
        }
        sum[p] = total;
    }
}
