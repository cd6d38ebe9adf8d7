/* Order statistics over vectors, lane = column: included once for each vector type of an ISA (no include guard).
 *
 * The including file defines FN(name) (a suffix of its own), V (keys of LANES columns of SIZE bytes each), LOAD(i),
 * CE(a, b) (a = min, b = max), CX (CE, or another way to do it), MIN, MAX, GREATEST, LEAST, CHECK(a, b) and
 * ENDS(low, high) (what they see of Inf and NaN goes to *state), FN(state), FN(begin), FN(bad), and for sums in fp64:
 * PARTS vectors D a V, WIDEN(v, part), ZERO, ADD, SUB, ABS, HALVE, LESS(a, b) (a mask), AT_MOST, BOTH,
 * ADD_IF(mask, total, x), SPLAT, STORE(p, d).
 *
 * n rows are halved until FC_ORDER_LEAF fit the registers, sorted there, and merged pairwise by Batcher's odd-even
 * merge (networks.py); all lists that are merged differ in length by one row at most, so the cost has no steps in n. Of
 * each merge, the first four levels are one pass, the last up to five another, with up to four a pass between. Lists
 * stay depth first in the first-level cache as long as they fit. */

typedef void FN(leaf_fn)(const char* const* rows, int64_t offset, V* out, FN(state) * state, ahead_t* ahead);
typedef void FN(top_fn)(V* e, V* o, int64_t s, ahead_t* ahead);
typedef void FN(pass_fn)(const V* e, int64_t je, const V* o, int64_t jo, int64_t s, V* de, V* dd, int64_t t,
                         ahead_t* ahead);
#include "order_networks.h"

/* Sorted e and o to the sorted `out`; ne is no or one more, together above half of FC_ORDER_LEAF. e, o are overwritten.
 */
static void FN(merge)(V* e, int64_t ne, V* o, int64_t no, V* out, ahead_t* ahead) {
    int64_t s = 1;
    int left = 0; /* levels after the pass */
    while (8 * s < ne) s *= 2, left++;
    for (int64_t c = 0; c < s; c++) {
        const int64_t je = (ne - c + s - 1) / s, jo = (no - c + s - 1) / s;
        FN(tops)[je - 4][je - jo](e + c, o + c, s, ahead);
    }
    for (; left > FC_ORDER_LAST; left -= 4) {
        const int k = 4;
        s >>= k;
        for (int64_t c = 0; c < s; c++)
            FN(passes)[k](e + c, (ne - c + s - 1) / s, o + c, (no - c + s - 1) / s, s, e + c, o + c, s, ahead);
    }
    FN(passes)[left](e, ne, o, no, 1, out, out + 1, 2, ahead);
}

/* Rows 0 to count in ascending order to out; `other` is as large and lost. depth: halvings until leaves. */
static void FN(sort)(const char* const* rows, int64_t count, int depth, int64_t offset, V* out, V* other,
                     FN(state) * state, ahead_t* ahead) {
    if (!depth) {
        if (count > FC_ORDER_LEAF) __builtin_unreachable(); /* else gcc 12 warns of an index that depth rules out */
        if (count) FN(leaves)[count](rows, offset, out, state, ahead);
        return;
    }
    const int64_t half = (count + 1) / 2;
    FN(sort)(rows, half, depth - 1, offset, other, out, state, ahead);
    FN(sort)(rows + half, count - half, depth - 1, offset, other + half, out + half, state, ahead);
    FN(merge)(other, half, other + half, count - half, out, ahead);
}

/* The middle of two sorted halves: of the n / 2 pairs a[i], b[n / 2 - 1 - i] the lesser ones are the lower half of all,
 * so the greatest of them and the least of the others are the middle two. */
static inline void FN(middle_even)(const V* a, const V* b, int64_t half, V* low, V* high) {
    V most[2] = {LEAST, LEAST}, fewest[2] = {GREATEST, GREATEST};
    int64_t i = 0;
    for (; i + 2 <= half; i += 2) {
        most[0] = MAX(MIN(a[i], b[half - 1 - i]), most[0]);
        fewest[0] = MIN(MAX(a[i], b[half - 1 - i]), fewest[0]);
        most[1] = MAX(MIN(a[i + 1], b[half - 2 - i]), most[1]);
        fewest[1] = MIN(MAX(a[i + 1], b[half - 2 - i]), fewest[1]);
    }
    if (i < half) {
        most[0] = MAX(MIN(a[i], b[0]), most[0]);
        fewest[0] = MIN(MAX(a[i], b[0]), fewest[0]);
    }
    *low = MAX(most[0], most[1]);
    *high = MIN(fewest[0], fewest[1]);
}

/* The same with one element more in a, and the middle itself. */
static inline V FN(middle_odd)(const V* a, const V* b, int64_t half) {
    V most = a[0], other = LEAST;
    int64_t i = 1;
    for (; i + 2 <= half + 1; i += 2) {
        most = MAX(MIN(a[i], b[half - i]), most);
        other = MAX(MIN(a[i + 1], b[half - i - 1]), other);
    }
    if (i <= half) most = MAX(MIN(a[i], b[half - i]), most);
    return MAX(most, other);
}

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
                                                        FN(state) * seen, double* acc) {                         \
        FN(state) state = *seen;                                                                                 \
        for (int64_t k = 0; k < length; k += LANES) {                                                            \
            if (k + LANES > length) k = length - LANES;                                                          \
            const int64_t here = (offset + k) * SIZE;                                                            \
            ahead_t ahead = ahead_of(rows, n, here, LANES * SIZE, (FC_ORDER_ASKED + n - 1) / n);                 \
            V first[a], second[b], low, high;                                                                    \
            FN(leaf_##a)(rows, here, first, &state, &ahead);                                                     \
            FN(leaf_##b)(rows + a, here, second, &state, &ahead);                                                \
            if (n % 2) low = high = FN(middle_odd)(first, second, b);                                            \
            else FN(middle_even)(first, second, b, &low, &high);                                                 \
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
typedef void FN(few_fn)(const char* const* rows, int64_t offset, int64_t length, FN(state) * seen, double* acc);
/* By number of rows from FC_ORDER_FEWEST to FC_ORDER_FEW. */
static FN(few_fn) * const FN(medians)[] = {FN(median_3),  FN(median_4),  FN(median_5),  FN(median_6),  FN(median_7),
                                           FN(median_8),  FN(median_9),  FN(median_10), FN(median_11), FN(median_12),
                                           FN(median_13), FN(median_14), FN(median_15), FN(median_16)};

static int FN(run)(const void* const* rows, int64_t n, int64_t offset, int64_t length, fc_statistic statistic,
                   int64_t f, void* scratch, double* acc) {
    FN(state) state = FN(begin)();
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
            FN(sort)(at, half, depth, here, sorted, other, &state, &ahead);
            FN(sort)(at + half, n - half, depth, here, sorted + half, other + half, &state, &ahead);
            V low, high;
            if (n % 2) low = high = FN(middle_odd)(sorted, sorted + half, n / 2);
            else FN(middle_even)(sorted, sorted + half, n / 2, &low, &high);
            FN(put_middle)(low, high, acc + k);
        } else {
            FN(sort)(at, n, depth, here, sorted, other, &state, &ahead);
            if (statistic == FC_TRIMMED_MEAN) FN(put_sum)(sorted, f, n - f, acc + k);
            else FN(put_window)(sorted, n, f, acc + k);
        }
        while (ahead.row != ahead.end) ask(&ahead);
    }
    return FN(bad)(&state);
}
