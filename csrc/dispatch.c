/* Which kernels run here, and every thread of the library. Threads are plain pthreads that live for one call: nothing
 * is pooled, so nothing spins beside the caller's own runtime, nothing is left behind for a forked child to wait on,
 * and calls from several threads share nothing. Starting one costs some 20 us, against milliseconds of work. */
#define _DEFAULT_SOURCE /* posix_memalign, syscall */
#include <pthread.h>
#include <stdlib.h>

#include "impl.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(FC_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
/* Bits of what this machine has. Not by __builtin_cpu_supports: gcc 10 and clang 17 know no f16c there, and with zig's
 * run-time library it says no to everything. */
enum { HAS_AVX2 = 1, HAS_AVX512 = 2, HAS_AES = 4, HAS_VAES = 8, ASKED = 16 };

static int has_all(unsigned word, unsigned bits) { return (word & bits) == bits; }

/* Registers that the system keeps when it changes threads. macOS keeps those of AVX-512 from their first use on, and
 * says so only then. */
static unsigned kept_registers(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
#if defined(__APPLE__)
    low |= 0xe0;
#endif
    return low;
}

static int find_features(void) {
    enum { FMA = 1 << 12, AES = 1 << 25, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 }; /* leaf 1, ecx */
    enum { AVX2 = 1 << 5, F = 1 << 16, DQ = 1 << 17, BW = 1 << 30 };                         /* leaf 7, ebx, and VL */
    enum { VAES = 1 << 9, YMM = 0x6, ZMM = 0xe6 };
    const unsigned vl = 1u << 31;
    unsigned a, b, c, d, one, registers;
    if (!__get_cpuid(1, &a, &b, &one, &d) || !has_all(one, FMA | OSXSAVE | AVX | F16C)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2)) return 0;
    registers = kept_registers();
    if (!has_all(registers, YMM)) return 0;
    int found = HAS_AVX2 | (one & AES ? HAS_AES : 0) | (c & VAES ? HAS_VAES : 0);
    if (!has_all(b, F | DQ | BW | vl) || !has_all(registers, ZMM)) return found;
    return found | HAS_AVX512;
}

/* Asked for once: each question of CPUID takes a virtual machine 20 us and more. */
static int remembered(int* known, int (*find)(void)) {
    int answer = __atomic_load_n(known, __ATOMIC_RELAXED);
    if (!answer) __atomic_store_n(known, answer = find() | ASKED, __ATOMIC_RELAXED);
    return answer;
}

static int has(int feature) {
    static int known;
    return (remembered(&known, find_features) & feature) != 0;
}
#endif

#if defined(FC_AMX)
/* AMX needs the processor, and a kernel that grants tile data to the process. */
static int find_amx(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    unsigned a, b, c, d;
    const int tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1 && d >> 25 & 1; /* tiles, int8 */
    return tiles && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
}

static int has_amx(void) {
    static int known;
    return (remembered(&known, find_amx) & 1) != 0;
}
#endif

int fc_isa_available(fc_isa isa) {
    switch (isa) {
        case FC_ISA_AUTO:
        case FC_ISA_REF:
            return 1;
#if defined(__x86_64__)
        case FC_ISA_AVX2:
            return has(HAS_AVX2);
        case FC_ISA_AVX512:
            return has(HAS_AVX512);
#if defined(FC_AMX)
        case FC_ISA_AMX:
            return fc_isa_available(FC_ISA_AVX512) && has_amx();
#endif
#elif defined(__aarch64__)
        case FC_ISA_NEON:
            return 1;
#endif
        default:
            return 0;
    }
}

fc_isa fc_isa_best(void) {
    static const fc_isa order[] = {FC_ISA_AMX, FC_ISA_AVX512, FC_ISA_AVX2, FC_ISA_NEON};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (fc_isa_available(order[i])) return order[i];
    return FC_ISA_REF;
}

const fc_kernels* fc_kernels_for(fc_isa isa) {
    if (isa == FC_ISA_AUTO) isa = fc_isa_best();
    if (!fc_isa_available(isa)) return NULL;
    switch (isa) {
#if defined(__x86_64__)
        case FC_ISA_AVX2:
            return &fc_kernels_avx2;
        case FC_ISA_AVX512:
            return &fc_kernels_avx512;
#if defined(FC_AMX)
        case FC_ISA_AMX:
            return &fc_kernels_amx;
#endif
#elif defined(__aarch64__)
        case FC_ISA_NEON:
            return &fc_kernels_neon;
#endif
        default:
            return &fc_kernels_ref;
    }
}

/* AES-256-CTR from AVX2 on: by VAES in the vectors of the ISA where the processor has it, else by AES-NI. */
static const fc_stream_kernels* aes_for(fc_isa isa) {
#if defined(__x86_64__)
    if (isa == FC_ISA_AUTO) isa = fc_isa_best();
    if (isa == FC_ISA_REF || !fc_isa_available(isa) || !has(HAS_AES)) return NULL;
    if (!has(HAS_VAES)) return &fc_aes256ctr_aesni;
    return isa == FC_ISA_AVX2 ? &fc_aes256ctr_vaes256 : &fc_aes256ctr_vaes;
#else
    (void)isa;
    return NULL;
#endif
}

const fc_stream_kernels* fc_stream_for(fc_stream stream, fc_isa isa) {
    if (stream == FC_AES256CTR) return aes_for(isa);
    const fc_kernels* kernels = fc_kernels_for(isa);
    return kernels ? kernels->chacha20 : NULL;
}

int fc_stream_available(fc_stream stream, fc_isa isa) { return fc_stream_for(stream, isa) != NULL; }

/* About a millisecond, asked for once for each table of kernels; two threads that ask at once find the same. */
int fc_stream_checked(const fc_stream_kernels* kernels, fc_stream stream) {
    enum { MOST = 8 };
    static const fc_stream_kernels* right[MOST];
    for (int i = 0; i < MOST; i++) {
        const fc_stream_kernels* known = __atomic_load_n(&right[i], __ATOMIC_RELAXED);
        if (known == kernels) return 1;
        if (known) continue;
        if (!fc_stream_right(kernels, stream)) return 0;
        __atomic_store_n(&right[i], kernels, __ATOMIC_RELAXED);
        return 1;
    }
    return fc_stream_right(kernels, stream);
}

#if defined(__x86_64__)
fc_mode fc_enter_ieee(void) {
    fc_mode mode = _mm_getcsr();
    _mm_setcsr(0x1f80); /* round to nearest, subnormals kept, exceptions masked */
    return mode;
}
void fc_leave_ieee(fc_mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
fc_mode fc_enter_ieee(void) {
    fc_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return mode;
}
void fc_leave_ieee(fc_mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
fc_mode fc_enter_ieee(void) { return 0; }
void fc_leave_ieee(fc_mode mode) { (void)mode; }
#endif

typedef struct {
    fc_worker_fn* fn;
    void* context;
    int worker;
    pthread_t thread;
} worker_start;

static void* run_worker(void* argument) {
    worker_start* start = argument;
    const fc_mode mode = fc_enter_ieee();
    start->fn(start->context, start->worker);
#if defined(__x86_64__)
    _mm_sfence(); /* kernels' streaming stores are seen by whoever waits for the worker */
#endif
    fc_leave_ieee(mode);
    return NULL;
}

void fc_parallel(int threads, fc_worker_fn* fn, void* context) {
    worker_start own = {fn, context, 0, 0};
    int started = 0;
    worker_start* others = threads > 1 ? calloc((size_t)threads - 1, sizeof *others) : NULL;
    for (; others && started < threads - 1; started++) {
        others[started] = (worker_start){fn, context, started + 1, 0};
        if (pthread_create(&others[started].thread, NULL, run_worker, &others[started])) break;
    }
    run_worker(&own);
    for (int i = 0; i < started; i++) pthread_join(others[i].thread, NULL);
    free(others);
}

int64_t fc_next(int64_t* counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }

struct fc_turn {
    pthread_mutex_t mutex;
    pthread_cond_t moved;
    int64_t next;
};

fc_turn* fc_turn_new(void) {
    fc_turn* turn = calloc(1, sizeof *turn);
    if (!turn) return NULL;
    pthread_mutex_init(&turn->mutex, NULL);
    pthread_cond_init(&turn->moved, NULL);
    return turn;
}

void fc_turn_wait(fc_turn* turn, int64_t item) {
    pthread_mutex_lock(&turn->mutex);
    while (turn->next != item) pthread_cond_wait(&turn->moved, &turn->mutex);
    pthread_mutex_unlock(&turn->mutex);
}

void fc_turn_done(fc_turn* turn) {
    pthread_mutex_lock(&turn->mutex);
    turn->next++;
    pthread_cond_broadcast(&turn->moved);
    pthread_mutex_unlock(&turn->mutex);
}

void fc_turn_free(fc_turn* turn) {
    if (!turn) return;
    pthread_mutex_destroy(&turn->mutex);
    pthread_cond_destroy(&turn->moved);
    free(turn);
}

void* fc_alloc(size_t bytes) {
    void* memory = NULL;
    return posix_memalign(&memory, FC_ALIGN, bytes ? bytes : FC_ALIGN) ? NULL : memory;
}
