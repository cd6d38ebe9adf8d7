/* Portable kernel of squared_distances, and for the columns that other ISAs leave over. */
#include "impl.h"

void fc_pair_squares_ref(const double* const* a, const double* const* b, int64_t length, double* sum) {
    for (int p = 0; p < FC_PAIRS; p++) {
        double total = sum[p];
        for (int64_t k = 0; k < length; k++) {
            const double difference = a[p][k] - b[p][k];
            total += difference * difference;
        }
        sum[p] = total;
    }
}
