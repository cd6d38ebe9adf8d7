/* Order statistics over a cohort: runs of columns, all rows of a few columns at a time. */
#include <stdlib.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "impl.h"

enum {
    RUN = 8192,            /* columns that one item of work covers at most */
    TILE = 512,            /* columns whose fp64 results wait for their rounding */
    SHARES = 8,            /* items a thread, at least, where there are columns enough */
    STREAM_FROM = 4 << 20, /* bytes of output from which writes bypass the cache */
};

typedef struct {
    const fc_rows* x;
    const fc_kernels* kernels;
    fc_statistic statistic;
    int64_t f;
    double divisor;
    char* out;
    fc_dtype out_dtype;
    int64_t run;         /* columns an item */
    const int64_t* runs; /* items before each segment */
    int64_t next;
    int bad;
} job;

/* The first elements, past the cache, where the machine can and `out` is aligned; returns how many. */
static int64_t stream_positive_zeros(char* out, const char* from, int64_t length, fc_dtype dtype) {
    int64_t k = 0;
#if defined(__x86_64__)
    const int size = fc_itemsize(dtype), step = 16 / size;
    if (size == 8 || (uintptr_t)out % 16) return 0;
    const __m128i negative = size == 4 ? _mm_set1_epi32((int)0x80000000u) : _mm_set1_epi16((short)0x8000);
    for (; k + step <= length; k += step) {
        const __m128i x = _mm_loadu_si128((const __m128i*)(from + k * size));
        const __m128i zero = size == 4 ? _mm_cmpeq_epi32(x, negative) : _mm_cmpeq_epi16(x, negative);
        _mm_stream_si128((__m128i*)(out + k * size), _mm_andnot_si128(zero, x));
    }
#else
    (void)out, (void)from, (void)length, (void)dtype;
#endif
    return k;
}

void fc_put_positive_zeros(char* out, const char* from, int64_t length, fc_dtype dtype, int stream) {
    const int64_t done = stream ? stream_positive_zeros(out, from, length, dtype) : 0;
    out += done * fc_itemsize(dtype), from += done * fc_itemsize(dtype), length -= done;
    if (dtype == FC_F32) {
        for (int64_t k = 0; k < length; k++) {
            uint32_t bits;
            memcpy(&bits, from + 4 * k, 4);
            bits = bits == 0x80000000u ? 0 : bits;
            memcpy(out + 4 * k, &bits, 4);
        }
    } else if (dtype == FC_F64) {
        for (int64_t k = 0; k < length; k++) {
            uint64_t bits;
            memcpy(&bits, from + 8 * k, 8);
            bits = bits == 0x8000000000000000u ? 0 : bits;
            memcpy(out + 8 * k, &bits, 8);
        }
    } else {
        for (int64_t k = 0; k < length; k++) {
            uint16_t bits;
            memcpy(&bits, from + 2 * k, 2);
            bits = bits == 0x8000u ? 0 : bits;
            memcpy(out + 2 * k, &bits, 2);
        }
    }
}

static void order_run(const job* j, int64_t item, char* memory, int* bad) {
    const fc_rows* x = j->x;
    const int size = fc_itemsize(j->out_dtype);
    double* acc = (double*)memory;
    char *rounded = memory + TILE * 16, *scratch = rounded + TILE * 16;
    const int64_t low = fc_last_start(j->runs, x->segments, item);
    const int64_t columns = x->starts[low + 1] - x->starts[low], start = (item - j->runs[low]) * j->run;
    const int64_t end = item + 1 == j->runs[low + 1] ? columns : start + j->run;
    for (int64_t k = start; k < end;) {
        /* the rest goes into the last tile, for the same reason as in order() */
        const int64_t length = end - k < 2 * TILE ? end - k : TILE;
        const void* const* rows = x->pointers + low * x->rows;
        if (x->encoding) {
            const void** decoded = (const void**)(scratch + FC_ORDER_SCRATCH(x->rows));
            float* tile = (float*)(decoded + fc_ceil(x->rows, 8) * 8);
            for (int64_t i = 0; i < x->rows; i++)
                decoded[i] = fc_gather(j->kernels, x, i, x->starts[low] + k, length, tile + i * 2 * TILE);
            rows = decoded;
        }
        *bad |=
            j->kernels->order[x->dtype](rows, x->rows, x->encoding ? 0 : k, length, j->statistic, j->f, scratch, acc);
        *bad |= j->kernels->finish[FC_F32][j->out_dtype](acc, length, j->divisor, rounded, 0);
        fc_put_positive_zeros(j->out + (x->starts[low] + k) * size, rounded, length, j->out_dtype,
                              fc_columns(x) * size >= STREAM_FROM);
        k += length;
    }
}

static void work(void* context, int worker) {
    job* j = context;
    int bad = 0;
    const int64_t decoded = fc_ceil(j->x->rows, 8) * 64 + j->x->rows * 2 * TILE * (int64_t)sizeof(float);
    char* memory = fc_alloc((size_t)(TILE * 32 + FC_ORDER_SCRATCH(j->x->rows) + (j->x->encoding ? decoded : 0)));
    (void)worker;
    /* a worker without memory takes no item: the others do them all */
    for (int64_t item; memory && (item = fc_next(&j->next)) < j->runs[j->x->segments];)
        order_run(j, item, memory, &bad);
    if (bad) __atomic_store_n(&j->bad, 1, __ATOMIC_RELAXED);
    free(memory);
}

static int order(const fc_rows* x, fc_statistic statistic, int64_t f, double divisor, void* out, fc_dtype out_dtype,
                 fc_isa isa, int threads) {
    const fc_kernels* kernels = fc_kernels_for(isa);
    if (!kernels) return FC_NO_ISA;
    int64_t* runs = malloc((size_t)(x->segments + 1) * sizeof *runs);
    if (!runs) return FC_NO_MEMORY;
    const fc_mode mode = fc_enter_ieee();
    const int64_t share = fc_ceil(fc_columns(x) + 1, (int64_t)threads * SHARES * TILE) * TILE;
    job j = {x, kernels, statistic, f, divisor, out, out_dtype, share < RUN ? share : RUN, runs, 0, 0};
    runs[0] = 0;
    for (int64_t k = 0; k < x->segments; k++) {
        /* the rest of a segment goes with its last item, so that none is narrower than a vector if the segment is not
         */
        const int64_t columns = x->starts[k + 1] - x->starts[k];
        runs[k + 1] = runs[k] + (columns >= j.run ? columns / j.run : columns > 0);
    }
    fc_parallel((int)fc_min(threads, runs[x->segments]), work, &j);
    const int64_t items = runs[x->segments];
    free(runs);
    fc_leave_ieee(mode);
    return j.next < items ? FC_NO_MEMORY : j.bad ? FC_NOT_FINITE : FC_OK;
}

int fc_median(const fc_rows* x, void* out, fc_dtype out_dtype, fc_isa isa, int threads) {
    return order(x, FC_MEDIAN, 0, NAN, out, out_dtype, isa, threads);
}

int fc_trimmed_mean(const fc_rows* x, int64_t f, void* out, fc_dtype out_dtype, fc_isa isa, int threads) {
    return order(x, FC_TRIMMED_MEAN, f, (double)(x->rows - 2 * f), out, out_dtype, isa, threads);
}

int fc_mean_around_median(const fc_rows* x, int64_t f, void* out, fc_dtype out_dtype, fc_isa isa, int threads) {
    return order(x, FC_MEAN_AROUND_MEDIAN, f, (double)(x->rows - f), out, out_dtype, isa, threads);
}
