/* weighted_sum in portable C: the truth for every other ISA. */
#include "impl.h"

#define ACCUMULATE(name, load)                                                                             \
    void fc_weighted_sum_##name##_ref(const void* const* rows, const double* w, int count, int64_t length, \
                                      double* acc, int first) {                                            \
        for (int64_t k = 0; k < length; k++) {                                                             \
            double sum = first ? 0.0 : acc[k];                                                             \
            for (int r = 0; r < count; r++) sum += w[r] * (double)load(rows[r], k);                        \
            acc[k] = sum;                                                                                  \
        }                                                                                                  \
    }
ACCUMULATE(f32, fc_load_f32)
ACCUMULATE(f16, fc_load_f16)
ACCUMULATE(bf16, fc_load_bf16)

static inline double quotient(double sum, double divisor) { return isnan(divisor) ? sum : sum / divisor; }

int fc_weighted_sum_to_f64_ref(const double* acc, int64_t length, double divisor, void* out, int stream) {
    int bad = 0;
    (void)stream;
    for (int64_t k = 0; k < length; k++) {
        double value = quotient(acc[k], divisor);
        bad |= !isfinite(value);
        memcpy((char*)out + 8 * k, &value, 8);
    }
    return bad;
}

int fc_weighted_sum_to_f32_ref(const double* acc, int64_t length, double divisor, void* out, int stream) {
    int bad = 0;
    (void)stream;
    for (int64_t k = 0; k < length; k++) {
        float value = (float)quotient(acc[k], divisor);
        bad |= !isfinite(value);
        memcpy((char*)out + 4 * k, &value, 4);
    }
    return bad;
}

#define TO_16(name, ebits, infinity)                                                                                \
    int fc_weighted_sum_to_##name##_ref(const double* acc, int64_t length, double divisor, void* out, int stream) { \
        int bad = 0;                                                                                                \
        (void)stream;                                                                                               \
        for (int64_t k = 0; k < length; k++) {                                                                      \
            uint16_t value = fc_round16(quotient(acc[k], divisor), ebits);                                          \
            bad |= (value & (infinity)) == (infinity);                                                              \
            memcpy((char*)out + 2 * k, &value, 2);                                                                  \
        }                                                                                                           \
        return bad;                                                                                                 \
    }
TO_16(f16, 5, 0x7c00)
TO_16(bf16, 8, 0x7f80)
