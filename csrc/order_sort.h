/* Rows sorted in vectors, lane = column: included once for each vector type of an ISA (no include guard).
 *
 * The including file defines FN(name) (a suffix of its own), V (keys), LOAD(i), CE(a, b) (a = min, b = max), CX (CE, or
 * another way to do it), MIN, MAX, GREATEST, LEAST, CHECK(a, b) and ENDS(low, high) (what they see of Inf and NaN goes
 * to *state) and FN(state).
 *
 * n rows are halved until FC_ORDER_LEAF fit the registers, sorted there, and merged pairwise (networks.py): two leaves
 * by a bitonic sorter, in registers too, longer lists by Batcher's odd-even merge; all lists that are merged differ in
 * length by one row at most, so the cost has no steps in n. Of each odd-even merge, the first four levels are one pass,
 * the last up to five another, with up to four a pass between. Lists stay depth first in the first-level cache as long
 * as they fit. */

typedef void FN(leaf_fn)(const char* const* rows, int64_t offset, V* out, FN(state) * state, ahead_t* ahead);
typedef void FN(top_fn)(V* e, V* o, int64_t s, ahead_t* ahead);
typedef void FN(pass_fn)(const V* e, int64_t je, const V* o, int64_t jo, int64_t s, V* de, V* dd, int64_t t,
                         ahead_t* ahead);
typedef void FN(half_fn)(const V* a, const V* b, V last, V* out, ahead_t* ahead);
typedef void FN(half_middle_fn)(const V* a, const V* b, V last, const V* other, V* most, V* fewest, ahead_t* ahead);
#include "order_networks.h"

/* Two sorted leaves to the sorted `out`; na is nb or one more. */
static inline void FN(join)(const V* a, int64_t na, const V* b, int64_t nb, V* out, ahead_t* ahead) {
    FN(halves)[na - FC_ORDER_LEAST][0](a, b, na == nb ? b[nb - 1] : GREATEST, out, ahead);
    FN(halves)[nb - FC_ORDER_LEAST][1](a + na - nb, b, b[nb - 1], out + na, ahead);
}

/* Sorted e and o to the sorted `out`; ne is no or one more, together twice FC_ORDER_LEAF at least. e, o are
 * overwritten. */
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
    if (depth == 1) FN(join)(other, half, other + half, count - half, out, ahead);
    else FN(merge)(other, half, other + half, count - half, out, ahead);
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

/* The same, where b is still two leaves: p, and q of as many rows or one less. Its halves are compared as they are
 * sorted; `a` has as many rows as b, or one more (`odd`), and then both are the middle itself. */
static inline void FN(middle_of_leaves)(const V* a, int odd, const V* p, int64_t np, const V* q, int64_t nq, V* low,
                                        V* high, ahead_t* ahead) {
    V most[2] = {LEAST, LEAST}, fewest[2] = {GREATEST, GREATEST};
    const V* const last = a + np + nq - !odd;
    FN(halves_middle)[np - FC_ORDER_LEAST][0](p, q, np == nq ? q[nq - 1] : GREATEST, last, most, fewest, ahead);
    FN(halves_middle)[nq - FC_ORDER_LEAST][1](p + np - nq, q, q[nq - 1], last - np, most, fewest, ahead);
    *low = MAX(most[0], most[1]);
    if (odd) *low = MAX(*low, a[0]);
    *high = odd ? *low : MIN(fewest[0], fewest[1]);
}
