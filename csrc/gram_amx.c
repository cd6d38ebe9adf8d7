/* gram with AMX: each row of a block is rounded to 24-bit integers of a unit of its own, a power of two, and those are
 * multiplied digit by digit in base 256 by TDPBSSD, whose 32-bit sums are exact. What it drops and what that does to
 * the bound: fedcore/reference/gram.py.
 *
 * A step is 64 columns. Column k of a step shares a 32-bit word with columns k + 16, k + 32 and k + 48: the instruction
 * adds all four products of a word, so any grouping serves that both operands share. A packed panel holds, for each
 * step, the digits 2, 1 and 0 as tiles of 16 words with a line a row (left operands); the same with a line a word
 * (right operands); then 256 times its rows' units. */
#include "transpose_avx512.h"

enum { GROUP = 16 }; /* right panels that stay in the second-level cache while left ones pass */
enum { STEP = 64, TILE = 1024, DIGITS = 3, SIDE = FC_GRAM_BLOCK_AMX / STEP * DIGITS * TILE };

/* Columns k to k + 15 of a row less the center, of which there are `some`; 0 for the others. */
INLINE __m512 difference(const char* row, const float* center, int64_t k, __mmask16 some, fc_dtype type) {
    const char* at = row + k * fc_itemsize(type);
    __m512 x;
    if (type == FC_F32) {
        x = _mm512_maskz_loadu_ps(some, at);
    } else {
        const __m256i half = _mm256_maskz_loadu_epi16(some, at);
        x = type == FC_F16 ? _mm512_cvtph_ps(half)
                           : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    return center ? _mm512_sub_ps(x, _mm512_maskz_loadu_ps(some, center + k)) : x;
}

INLINE __mmask16 columns_left(int64_t length, int64_t k) {
    return length - k >= 16 ? 0xffff : length <= k ? 0 : (__mmask16)((1u << (length - k)) - 1);
}

/* The largest magnitude as bits, so that Inf and NaN are above every number. */
INLINE uint32_t largest(const char* row, const float* center, int64_t length, fc_dtype type) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    int64_t k = 0;
    for (; k + STEP <= length; k += STEP)
        for (int i = 0; i < 4; i++)
            most[i] = _mm512_max_epu32(
                most[i],
                _mm512_and_si512(_mm512_castps_si512(difference(row, center, k + 16 * i, 0xffff, type)), magnitude));
    for (; k < length; k += 16)
        most[0] = _mm512_max_epu32(
            most[0], _mm512_and_si512(_mm512_castps_si512(difference(row, center, k, columns_left(length, k), type)),
                                      magnitude));
    return _mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3])));
}

/* Low bytes of a up to those in `mask`, then those of b. */
INLINE __m512i choose(__m512i a, __m512i b, uint32_t mask) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32((int)mask), a, b, 0xca);
}

/* The digits of 64 columns, each rounded after it is multiplied by 2^power: three lines, digit 2 first. v + 128 · (1 +
 * 256 + 256²) has the digits of v plus 128; flipping the top bit of each byte makes them signed. */
INLINE void digits(const char* row, const float* center, int64_t k, const __mmask16* some, __m512 power, char* lines,
                   fc_dtype type) {
    const __m512i bias = _mm512_set1_epi32(0x808080);
    __m512i w[4];
    for (int i = 0; i < 4; i++) {
        const __m512i v =
            _mm512_cvtps_epi32(_mm512_scalef_ps(difference(row, center, k + 16 * i, some[i], type), power));
        w[i] = _mm512_xor_si512(_mm512_add_epi32(v, bias), bias);
    }
    const __m512i high =
        choose(choose(choose(_mm512_srli_epi32(w[0], 16), _mm512_srli_epi32(w[1], 8), 0xff), w[2], 0xffff),
               _mm512_slli_epi32(w[3], 8), 0xffffff);
    const __m512i middle =
        choose(choose(choose(_mm512_srli_epi32(w[0], 8), w[1], 0xff), _mm512_slli_epi32(w[2], 8), 0xffff),
               _mm512_slli_epi32(w[3], 16), 0xffffff);
    const __m512i low =
        choose(choose(choose(w[0], _mm512_slli_epi32(w[1], 8), 0xff), _mm512_slli_epi32(w[2], 16), 0xffff),
               _mm512_slli_epi32(w[3], 24), 0xffffff);
    _mm512_store_si512(lines, high);
    _mm512_store_si512(lines + TILE, middle);
    _mm512_store_si512(lines + 2 * TILE, low);
}

/* The left operands of one row; returns 256 times its unit, 0 for a row of zeros, NaN for one whose differences are not
 * all finite or nearly overflow; *peak tells the driver which. */
INLINE double pack_row(const char* row, const char* ahead, const float* center, int64_t length, char* lines,
                       uint32_t* peak, fc_dtype type) {
    const uint32_t most = largest(row, center, length, type);
    /* the largest integer is under 127 · (1 + 256 + 256²): a magnitude just below a power of two takes the next unit */
    const __m128 margin = _mm_set_ss(fc_float(most) * 1.0078125f);
    const int finite = isfinite(_mm_cvtss_f32(margin));
    const float exponent = most && finite ? _mm_cvtss_f32(_mm_getexp_ss(margin, margin)) : 0.0f;
    const __m512 power = _mm512_set1_ps(22.0f - exponent);
    static const __mmask16 all[4] = {0xffff, 0xffff, 0xffff, 0xffff};
    int64_t k = 0;
    for (; k + STEP <= length; k += STEP, lines += DIGITS * TILE) {
        for (int i = 0; i < fc_itemsize(type); i++) _mm_prefetch(ahead + k * fc_itemsize(type) + 64 * i, _MM_HINT_T0);
        digits(row, center, k, all, power, lines, type);
    }
    if (k < length) {
        const __mmask16 some[4] = {columns_left(length, k), columns_left(length, k + 16), columns_left(length, k + 32),
                                   columns_left(length, k + 48)};
        digits(row, center, k, some, power, lines, type);
    }
    *peak = !finite ? 0x7f800000 : most ? fc_bits(1.0f) : 0;
    return !finite ? NAN : most ? ldexp(256.0, (int)exponent - 22) : 0.0;
}

INLINE void transpose_tile(const char* from, char* to) {
    __m512 x[16];
    for (int r = 0; r < 16; r++) x[r] = _mm512_load_ps((const float*)(from + 64 * r));
    transpose(x);
    for (int r = 0; r < 16; r++) _mm512_store_ps((float*)(to + 64 * r), x[r]);
}

INLINE void pack(const void* const* rows, int count, const float* center, int64_t length, float* panel, uint32_t* peak,
                 fc_dtype type) {
    char *left = (char*)panel, *right = left + SIDE;
    double* units = (double*)(right + SIDE);
    const int64_t tiles = fc_ceil(length, STEP) * DIGITS;
    for (int r = 0; r < FC_GRAM_PANEL; r++) {
        if (r < count) {
            units[r] = pack_row(rows[r], rows[r + FC_GRAM_NEXT], center, length, left + 64 * r, &peak[r], type);
            continue;
        }
        units[r] = 0.0;
        peak[r] = 0;
        for (int64_t t = 0; t < tiles; t++) _mm512_store_si512(left + t * TILE + 64 * r, _mm512_setzero_si512());
    }
    for (int64_t t = 0; t < tiles; t++) transpose_tile(left + t * TILE, right + t * TILE);
}

#define PACK(name, type)                                                                                    \
    void fc_gram_pack_##name##_amx(const void* const* rows, int count, const float* center, int64_t length, \
                                   float* panel, uint32_t* peak) {                                          \
        if (center) pack(rows, count, center, length, panel, peak, type);                                   \
        else pack(rows, count, NULL, length, panel, peak, type);                                            \
    }
PACK(f32, FC_F32)
PACK(f16, FC_F16)
PACK(bf16, FC_BF16)

enum { SUMS = 5 * 256 }; /* 32-bit sums of one pair of panels */

/* A pair of panels whose sums are ready. */
typedef struct {
    const int32_t* sums; /* NULL: none */
    const double *row_units, *column_units;
    double* to;
    int64_t stride;
} ready;

/* Adds rows `from` to `end` of a pair's products to the fp64 sums. The digits' sums join exactly: 256 times the first
 * and the second stay below 2^31, the last is rounded to a multiple of 256 (1 / 128 of what leaving out digits 0 and 0
 * does). Units are powers of two, so only the last addition rounds. */
INLINE void fold(const ready* x, int from, int end) {
    for (int r = from; r < end; r++) {
        const int32_t* at = x->sums + 16 * r;
        const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(at), 8), _mm512_load_si512(at + 256));
        const __m512i middle = _mm512_add_epi32(_mm512_load_si512(at + 512), _mm512_load_si512(at + 768));
        const __m512i rest = _mm512_add_epi32(_mm512_load_si512(at + 1024), _mm512_set1_epi32(128));
        const __m512i low = _mm512_add_epi32(middle, _mm512_srai_epi32(rest, 8));
        double* to = x->to + r * x->stride;
        const __m512d unit = _mm512_set1_pd(x->row_units[r]), base = _mm512_set1_pd(256.0);
        for (int half = 0; half < 2; half++) {
            const __m512d above =
                _mm512_cvtepi32_pd(half ? _mm512_extracti64x4_epi64(high, 1) : _mm512_castsi512_si256(high));
            const __m512d below =
                _mm512_cvtepi32_pd(half ? _mm512_extracti64x4_epi64(low, 1) : _mm512_castsi512_si256(low));
            const __m512d value =
                _mm512_mul_pd(_mm512_fmadd_pd(above, base, below), _mm512_loadu_pd(x->column_units + 8 * half));
            _mm512_storeu_pd(to + 8 * half, _mm512_fmadd_pd(value, unit, _mm512_loadu_pd(to + 8 * half)));
        }
    }
}

/* Sums of products of the digits of two panels: of digits 2 and 2; of 2 and 1 both ways round; of 2 and 0 both ways
 * round; of 1 and 1; of 1 and 0 both ways round. Five tiles of sums keep the chains of additions short. Between tiles'
 * steps, whose unit is not the vectors', the pair before is folded. */
static void multiply(const char* left, const char* right, int64_t steps, int32_t* sums, const ready* before) {
    enum { ROWS = 16 * STEP / FC_GRAM_BLOCK_AMX }; /* to fold in a step of a whole block */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    for (int64_t k = 0; k < steps; k++, left += DIGITS * TILE, right += DIGITS * TILE) {
        _tile_loadd(5, left, 64);
        _tile_stream_loadd(7, right + TILE, 64);
        _tile_dpbssd(1, 5, 7);
        _tile_stream_loadd(7, right + 2 * TILE, 64);
        _tile_dpbssd(2, 5, 7);
        _tile_loadd(6, left + TILE, 64);
        _tile_dpbssd(4, 6, 7);
        _tile_stream_loadd(7, right, 64);
        _tile_dpbssd(0, 5, 7);
        _tile_dpbssd(1, 6, 7);
        _tile_loadd(5, left + 2 * TILE, 64);
        _tile_dpbssd(2, 5, 7);
        _tile_stream_loadd(7, right + TILE, 64);
        _tile_dpbssd(4, 5, 7);
        _tile_dpbssd(3, 6, 7);
        if (before->sums) fold(before, (int)k * ROWS, (int)(k + 1) * ROWS);
    }
    if (before->sums) fold(before, (int)steps * ROWS, 16);
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
    _tile_stored(4, sums + 1024, 64);
    __asm__ volatile("" ::: "memory"); /* the sums are read next */
}

/* All eight tiles are 16 lines of 64 bytes. Constant: the compiler may not know that the instruction reads all of it.
 */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t lines[16];
} tile_config;
static const tile_config config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

void fc_gram_products_amx(const float* panel, int64_t rows, int64_t first, int64_t length, double* sum, double* scale,
                          int rescaled, fc_ahead* next) {
    (void)rescaled, (void)next; /* there are units to scale by anyway; left to packing */
    _Alignas(64) int32_t sums[2][SUMS];
    const char* packed = (const char*)panel;
    first /= FC_GRAM_PANEL;
    const int64_t steps = fc_ceil(length, STEP), panels = fc_ceil(rows, FC_GRAM_PANEL), stride = panels * FC_GRAM_PANEL;
    for (int64_t p = 0; p < panels; p++) {
        const double* units = (const double*)(packed + p * FC_GRAM_PANEL_AMX + 2 * SIDE);
        for (int r = 0; r < FC_GRAM_PANEL; r++) scale[FC_GRAM_PANEL * p + r] *= units[r];
    }
    ready before = {0};
    int turn = 0;
    _tile_loadconfig(&config);
    for (int64_t group = 0; group < panels; group += GROUP)
        for (int64_t i = first > group ? first : group; i < panels; i++)
            for (int64_t p = group; p <= i && p < group + GROUP; p++, turn ^= 1) {
                multiply(packed + i * FC_GRAM_PANEL_AMX, packed + p * FC_GRAM_PANEL_AMX + SIDE, steps, sums[turn],
                         &before);
                before = (ready){sums[turn], scale + FC_GRAM_PANEL * i, scale + FC_GRAM_PANEL * p,
                                 sum + (i * stride + p) * FC_GRAM_PANEL, stride};
            }
    _tile_release(); /* no caller sees tile state */
    if (before.sums) fold(&before, 0, 16);
}
