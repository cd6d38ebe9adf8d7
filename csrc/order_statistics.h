/* Order statistics over vectors, lane = column: included once for each element type (no include guard), after
 * order_sort.h for its keys.
 *
 * The including file defines KEY(name) (FN of order_sort.h), FN(name) (a suffix of its own), V (keys of LANES columns
 * of SIZE bytes each), KEY(begin), FN(bad), and for sums in fp64: PARTS vectors D a V, WIDEN(v, part), ZERO, ADD, SUB,
 * ABS, HALVE, LESS(a, b) (a mask), AT_MOST, BOTH, ADD_IF(mask, total, x), SPLAT, STORE(p, d). */

static inline void FN(put_middle)(V low, V high, double* acc) {
    for (int p = 0; p < PARTS; p++) STORE(acc + p * (LANES / PARTS), HALVE(ADD(WIDEN(low, p), WIDEN(high, p))));
}

/* Kept elements first to end, from 0.0 in ascending order. */
static inline void FN(put_sum)(const V* sorted, int64_t first, int64_t end, double* acc) {
    D total[PARTS];
    for (int p = 0; p < PARTS; p++) total[p] = ZERO;
    for (int64_t r = first; r < end; r++)
        for (int p = 0; p < PARTS; p++) total[p] = ADD(total[p], WIDEN(sorted[r], p));
    for (int p = 0; p < PARTS; p++) STORE(acc + p * (LANES / PARTS), total[p]);
}

/* The window of n - f elements that lies closest to the middle: see fedcore/reference/mean_around_median.py. */
static inline void FN(put_window)(const V* sorted, int64_t n, int64_t f, double* acc) {
    const int64_t kept = n - f, start = fc_window_start(n, f);
    for (int p = 0; p < PARTS; p++) {
        const D middle =
            n % 2 ? WIDEN(sorted[n / 2], p) : HALVE(ADD(WIDEN(sorted[n / 2 - 1], p), WIDEN(sorted[n / 2], p)));
        D first = SPLAT((double)start), total = ZERO, at = first;
        for (int64_t s = start; s < f; s++)
            first = ADD_IF(LESS(ABS(SUB(WIDEN(sorted[kept + s], p), middle)), ABS(SUB(WIDEN(sorted[s], p), middle))),
                           first, SPLAT(1.0));
        const D end = ADD(first, SPLAT((double)kept));
        int64_t r = start;
        for (; r < f && r < start + kept; r++, at = ADD(at, SPLAT(1.0))) /* before the end of every lane's window */
            total = ADD_IF(AT_MOST(first, at), total, WIDEN(sorted[r], p));
        for (; r < start + kept; r++) total = ADD(total, WIDEN(sorted[r], p)); /* in every lane's window */
        for (at = SPLAT((double)r); r < f; r++, at = ADD(at, SPLAT(1.0)))
            total = ADD_IF(BOTH(AT_MOST(first, at), LESS(at, end)), total, WIDEN(sorted[r], p));
        for (; r < n; r++, at = ADD(at, SPLAT(1.0))) /* after the start of every lane's window */
            total = ADD_IF(LESS(at, end), total, WIDEN(sorted[r], p));
        STORE(acc + p * (LANES / PARTS), total);
    }
}

/* Medians of few rows: both halves stay in registers, and so does what was seen of Inf and NaN. */
#define FEW(n, a, b)                                                                                             \
    static __attribute__((flatten)) void FN(median_##n)(const char* const* rows, int64_t offset, int64_t length, \
                                                        KEY(state) * seen, double* acc) {                        \
        KEY(state) state = *seen;                                                                                \
        for (int64_t k = 0; k < length; k += LANES) {                                                            \
            if (k + LANES > length) k = length - LANES;                                                          \
            const int64_t here = (offset + k) * SIZE;                                                            \
            ahead_t ahead = ahead_of(rows, n, here, LANES * SIZE, (FC_ORDER_ASKED + n - 1) / n);                 \
            V first[a], second[b], low, high;                                                                    \
            KEY(leaf_##a)(rows, here, first, &state, &ahead);                                                    \
            KEY(leaf_##b)(rows + a, here, second, &state, &ahead);                                               \
            if (n % 2) low = high = KEY(middle_odd)(first, second, b);                                           \
            else KEY(middle_even)(first, second, b, &low, &high);                                                \
            FN(put_middle)(low, high, acc + k);                                                                  \
            while (ahead.row != ahead.end) ask(&ahead);                                                          \
        }                                                                                                        \
        *seen = state;                                                                                           \
    }
FEW(3, 2, 1)
FEW(4, 2, 2)
FEW(5, 3, 2)
FEW(6, 3, 3)
FEW(7, 4, 3)
FEW(8, 4, 4)
FEW(9, 5, 4)
FEW(10, 5, 5)
FEW(11, 6, 5)
FEW(12, 6, 6)
FEW(13, 7, 6)
FEW(14, 7, 7)
FEW(15, 8, 7)
FEW(16, 8, 8)
#undef FEW
typedef void FN(few_fn)(const char* const* rows, int64_t offset, int64_t length, KEY(state) * seen, double* acc);
/* By number of rows from FC_ORDER_FEWEST to FC_ORDER_FEW. */
static FN(few_fn) * const FN(medians)[] = {FN(median_3),  FN(median_4),  FN(median_5),  FN(median_6),  FN(median_7),
                                           FN(median_8),  FN(median_9),  FN(median_10), FN(median_11), FN(median_12),
                                           FN(median_13), FN(median_14), FN(median_15), FN(median_16)};

static int FN(run)(const void* const* rows, int64_t n, int64_t offset, int64_t length, fc_statistic statistic,
                   int64_t f, void* scratch, double* acc) {
    KEY(state) state = KEY(begin)();
    V *const sorted = scratch, *const other = sorted + n;
    const char* const* at = (const char* const*)rows;
    const int64_t half = (n + 1) / 2;
    int depth = 0;
    if (statistic == FC_MEDIAN && n >= FC_ORDER_FEWEST && n <= FC_ORDER_FEW) {
        FN(medians)[n - FC_ORDER_FEWEST](at, offset, length, &state, acc);
        return FN(bad)(&state);
    }
    while (FC_ORDER_LEAF << depth < (statistic == FC_MEDIAN ? half : n)) depth++;
    for (int64_t k = 0; k < length; k += LANES) {
        if (k + LANES > length) k = length - LANES; /* the last columns once more: the same results */
        const int64_t here = (offset + k) * SIZE;
        ahead_t ahead = ahead_of(at, n, here, LANES * SIZE, 1);
        if (statistic == FC_MEDIAN) {
            KEY(sort)(at, half, depth, here, sorted, other, &state, &ahead);
            V low, high;
            if (depth == 1) {
                const int64_t first = (n / 2 + 1) / 2;
                V* const leaf = sorted + half;
                KEY(leaves)[first](at + half, here, leaf, &state, &ahead);
                KEY(leaves)[n / 2 - first](at + half + first, here, leaf + first, &state, &ahead);
                KEY(middle_of_leaves)(sorted, n % 2, leaf, first, leaf + first, n / 2 - first, &low, &high, &ahead);
            } else {
                KEY(sort)(at + half, n - half, depth, here, sorted + half, other + half, &state, &ahead);
                if (n % 2) low = high = KEY(middle_odd)(sorted, sorted + half, n / 2);
                else KEY(middle_even)(sorted, sorted + half, n / 2, &low, &high);
            }
            FN(put_middle)(low, high, acc + k);
        } else {
            KEY(sort)(at, n, depth, here, sorted, other, &state, &ahead);
            if (statistic == FC_TRIMMED_MEAN) FN(put_sum)(sorted, f, n - f, acc + k);
            else FN(put_window)(sorted, n, f, acc + k);
        }
        while (ahead.row != ahead.end) ask(&ahead);
    }
    return FN(bad)(&state);
}
