/* Order statistics in portable C: column by column, a merge sort of integer keys. The truth for every other ISA. */
#include "impl.h"

static inline int32_t key_of(float x) {
    const int32_t bits = (int32_t)fc_bits(x);
    return bits ^ (int32_t)((uint32_t)(bits >> 31) >> 1);
}
static inline double value_of(int32_t key) { return (double)fc_float((uint32_t)key ^ (uint32_t)(key >> 31) >> 1); }

static void sort_keys(int32_t* keys, int32_t* other, int64_t n) {
    for (int64_t run = 1; run < n; run *= 2) {
        for (int64_t start = 0; start < n; start += 2 * run) {
            const int64_t middle = fc_min(start + run, n), end = fc_min(start + 2 * run, n);
            for (int64_t i = start, j = middle, to = start; to < end; to++)
                other[to] = j >= end || (i < middle && keys[i] <= keys[j]) ? keys[i++] : keys[j++];
        }
        memcpy(keys, other, (size_t)n * sizeof *keys);
    }
}

static double middle_of(const int32_t* keys, int64_t n) {
    return n % 2 ? value_of(keys[n / 2]) : (value_of(keys[n / 2 - 1]) + value_of(keys[n / 2])) / 2;
}

static double sum_of(const int32_t* keys, int64_t first, int64_t end) {
    double total = 0.0;
    for (int64_t r = first; r < end; r++) total += value_of(keys[r]);
    return total;
}

/* See fedcore/reference/mean_around_median.py. */
static double window_sum(const int32_t* keys, int64_t n, int64_t f) {
    const double middle = middle_of(keys, n);
    int64_t first = fc_window_start(n, f);
    for (int64_t s = first; s < f; s++)
        first += fabs(value_of(keys[n - f + s]) - middle) < fabs(value_of(keys[s]) - middle);
    return sum_of(keys, first, first + n - f);
}

static inline int run(const void* const* rows, int64_t n, int64_t offset, int64_t length, fc_statistic statistic,
                      int64_t f, void* scratch, double* acc, float load(const void*, int64_t)) {
    int32_t *keys = scratch, *other = keys + n;
    int bad = 0;
    for (int64_t k = 0; k < length; k++) {
        for (int64_t i = 0; i < n; i++) keys[i] = key_of(load(rows[i], offset + k));
        sort_keys(keys, other, n);
        bad |= !isfinite(value_of(keys[0])) || !isfinite(value_of(keys[n - 1]));
        acc[k] = statistic == FC_MEDIAN         ? middle_of(keys, n)
                 : statistic == FC_TRIMMED_MEAN ? sum_of(keys, f, n - f)
                                                : window_sum(keys, n, f);
    }
    return bad;
}

#define ORDER(name, load)                                                                         \
    int fc_order_##name##_ref(const void* const* rows, int64_t n, int64_t offset, int64_t length, \
                              fc_statistic statistic, int64_t f, void* scratch, double* acc) {    \
        return run(rows, n, offset, length, statistic, f, scratch, acc, load);                    \
    }
ORDER(f32, fc_load_f32)
ORDER(f16, fc_load_f16)
ORDER(bf16, fc_load_bf16)
