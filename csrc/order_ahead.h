/* Asking for the columns to come, while those at hand are sorted. Hardware prefetch does not follow as many streams as
 * there are rows, and single lines from a hundred rows cost a page of memory each: so whole stretches of a row are
 * asked for, a stretch ahead, spread over the work so that memory is never idle. */
#ifndef FEDCORE_ORDER_AHEAD_H
#define FEDCORE_ORDER_AHEAD_H
#include <stdint.h>

enum { FC_ORDER_STRETCH = 256, FC_ORDER_LINE = 64 }; /* bytes */
enum { FC_ORDER_ASKED = 40 }; /* stretches of all rows together that few rows are asked for ahead: 10 KB */

typedef struct {
    const char *const *row, *const *end; /* whose next stretch is still to be asked for */
    int64_t offset;
} ahead_t;

/* The share of rows that falls to the vector at `offset`: after a stretch of vectors every row had its turn. They are
 * asked for `far` stretches ahead. */
static inline ahead_t ahead_of(const char* const* rows, int64_t n, int64_t offset, int64_t bytes, int64_t far) {
    const int64_t part = offset % FC_ORDER_STRETCH / bytes, parts = FC_ORDER_STRETCH / bytes;
    return (ahead_t){rows + n * part / parts, rows + n * (part + 1) / parts,
                     offset - offset % FC_ORDER_STRETCH + far * FC_ORDER_STRETCH};
}

/* One row's stretch, into the second-level cache. */
static inline void ask(ahead_t* ahead) {
    if (ahead->row == ahead->end) return;
    const char* at = *ahead->row++ + ahead->offset;
    for (int line = 0; line < FC_ORDER_STRETCH / FC_ORDER_LINE; line++)
        __builtin_prefetch(at + line * FC_ORDER_LINE, 0, 2);
}
#endif
