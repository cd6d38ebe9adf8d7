/* Asking for the lines of rows that are summed column by column, ahead of their loads. */
#ifndef FEDCORE_ASK_X86_H
#define FEDCORE_ASK_X86_H
#include <immintrin.h>

#include "impl.h"

enum { AHEAD = 1024, FAR = 2048 }; /* bytes: how far ahead of the load a line is asked for */

/* A line of a row at `at` is asked for, into the first level where that helps; on AMD's processors, whose own
 * prefetchers bring a group of rows there by themselves, into the second, before they come to it. */
INLINE void ask(const void* at, int amd) {
    if (amd) _mm_prefetch((const char*)at + FAR, _MM_HINT_T1);
    else _mm_prefetch((const char*)at + AHEAD, _MM_HINT_T0);
}

INLINE int on_amd(void) { return __builtin_cpu_is("amd"); }

#endif
