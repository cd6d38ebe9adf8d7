/* Medians of many rows by selection, 16 columns at a time: a sample of the rows, sorted by the networks, brackets each
 * column's median; the rows are transposed; of each column the few elements inside the bracket are kept and quartered
 * down by quickselect (Hoare 1961, Floyd and Rivest 1975). Work a column is linear in n, where sorting is not, and a
 * column lies in the first-level cache. 16-bit rows are widened to fp32 as they are read. Included once, after
 * order_sort.h over 32-bit integer keys. */

enum {
    SAMPLE_MOST = 512,
    GROUPS = 4,           /* of 16 columns that are transposed in one visit to the rows */
    AHEAD_ROWS = 32,      /* rows asked for before they are transposed */
    AHEAD_MOST = 1 << 18, /* bytes: the next stretches of all rows are asked for while they leave room in the cache */
    FEW = 64,             /* elements of a column that the networks sort */
    EAGER = 16, /* divisions by an element's value, after which the range of keys is halved: 32 more at most */
};

/* 16 vectors to their transpose. */
static inline void transpose(__m512i v[16]) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
        v[i + 4] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
        v[i + 12] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
    }
}

/* 16 columns of a row as fp32. */
INLINE __m512i bits_of(const char* row, fc_dtype type) {
    if (type == FC_F32) return _mm512_loadu_si512(row);
    const __m256i half = _mm256_loadu_si256((const __m256i*)row);
    return type == FC_F16 ? _mm512_castps_si512(_mm512_cvtph_ps(half))
                          : _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}

/* Keys of up to 16 rows, transposed: column i goes to `to` + i * stride. */
INLINE void columns_of_16(const char* const* rows, int count, int64_t offset, int32_t* to, int64_t stride,
                          state_i32* state, fc_dtype type) {
    __m512i v[16];
    for (int i = 0; i < 16; i++) v[i] = i < count ? key_i32(bits_of(rows[i] + offset, type)) : GREATEST;
    for (int i = 0; i < count; i++) {
        state->low = MIN(state->low, v[i]);
        state->high = MAX(state->high, v[i]);
    }
    transpose(v);
    for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * stride, v[i]);
}

/* Keys of all rows, `groups` times 16 columns one after the other, `stride` apart; past the last row stands the
 * greatest key. Whole stretches of a row at once, the next rows asked for: a page is looked up once for all of them. */
INLINE void columns_of(const char* const* rows, int64_t n, int64_t offset, int groups, int32_t* to, int64_t stride,
                       state_i32* state, fc_dtype type) {
    const int size = fc_itemsize(type);
    state_i32 seen = *state;
    for (int64_t r = 0; r < n; r += 16) {
        for (int64_t i = r + AHEAD_ROWS; i < r + AHEAD_ROWS + 16 && i < n; i++)
            for (int g = 0; g < groups; g++) __builtin_prefetch(rows[i] + offset + 16 * size * g, 0, 3);
        for (int g = 0; g < groups; g++)
            if (r + 16 <= n)
                columns_of_16(rows + r, 16, offset + 16 * size * g, to + 16 * g * stride + r, stride, &seen, type);
            else
                columns_of_16(rows + r, (int)(n - r), offset + 16 * size * g, to + 16 * g * stride + r, stride, &seen,
                              type);
    }
    *state = seen;
}

/* The first `count`. */
static inline __mmask16 lanes(int64_t count) {
    return count >= 16 ? 0xffff : count < 0 ? 0 : (__mmask16)((1 << count) - 1);
}

static inline int64_t compress(int32_t* to, __mmask16 mask, __m512i x) {
    /* into a register and out in full: compressing into memory is slow on some processors */
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(mask, x));
    return __builtin_popcount(mask);
}

/* What is left of a column: `keys`, m elements from low to high with the wanted one at rank k; `next` follows the last.
 */
typedef struct {
    int32_t *keys, *spare;
    int64_t m, k;
    int32_t low, high, next;
} remnant;

/* Keeps of n elements (padded with the greatest key to whole vectors) those from low to high, high below the greatest,
 * in place. Whether ranks k and k + 1 of all are among them. */
static int bracket(remnant* x, int64_t n, int64_t k, int32_t low, int32_t high, ahead_t* ahead) {
    const __m512i least = _mm512_set1_epi32(low), most = _mm512_set1_epi32(high);
    int32_t* to = x->keys;
    int64_t below = 0;
    for (int64_t i = 0; i < n; i += 16) {
        const __m512i v = _mm512_load_si512(x->keys + i);
        const __mmask16 less = _mm512_cmplt_epi32_mask(v, least);
        to += compress(to, _mm512_mask_cmple_epi32_mask((__mmask16)~less, v, most), v);
        below += __builtin_popcount(less);
        if (i % 64 == 0) ask(ahead);
    }
    x->m = to - x->keys;
    x->k = k - below;
    x->low = low, x->high = x->next = high;
    return x->k >= 0 && (x->k + 1 < x->m || n == 1);
}

static int32_t least_of(const int32_t* keys, int64_t count, int32_t least) {
    for (int64_t i = 0; i < count; i++) least = keys[i] < least ? keys[i] : least;
    return least;
}

/* One step of quickselect. The branches left are rarely taken or foreseen. */
static void divide(remnant* x, int turn) {
    int32_t *const a = x->keys, *const b = x->spare;
    const int64_t m = x->m, k = x->k;
    const int32_t p = a[0], q = a[m / 2], r = a[m - 1], less = p < q ? p : q, more = p < q ? q : p;
    int32_t pivot = r < less ? less : r > more ? more : r;
    if (turn >= EAGER) pivot = (int32_t)(((int64_t)x->low + x->high) >> 1);
    const __m512i at = _mm512_set1_epi32(pivot);
    int64_t lower = 0, higher = 0;
    for (int64_t i = 0; i < m; i += 16) {
        const __m512i v = _mm512_loadu_si512(a + i);
        const __mmask16 valid = lanes(m - i);
        higher += compress(b + higher, _mm512_mask_cmpgt_epi32_mask(valid, v, at), v);
        lower += compress(a + lower, _mm512_mask_cmplt_epi32_mask(valid, v, at), v);
    }
    if (k >= lower && k < m - higher) { /* the pivot is it */
        x->next = k + 1 < m - higher ? pivot : least_of(b, higher, x->next);
        a[0] = pivot;
        x->m = 1;
        x->k = 0;
        return;
    }
    const int up = k >= lower;
    const int32_t follows = lower + higher < m ? pivot : least_of(b, higher, x->next);
    x->next = up ? x->next : follows;
    x->keys = up ? b : a;
    x->spare = up ? a : b;
    x->low = up ? pivot : x->low;
    x->high = up ? x->high : pivot;
    x->m = up ? higher : lower;
    x->k = k - (up ? m - higher : 0);
}

/* Medians of 16 columns: of each, remnant[i]'s element k (low) and what follows it (high), all m <= FEW. */
static void last_of(const remnant* x, int32_t* few, V* sorted, V* spare, const char* const* pointers, V* low, V* high) {
    state_i32 unused = begin_i32();
    ahead_t none = {pointers, pointers, 0};
    int64_t most = 0;
    for (int i = 0; i < 16; i++) most = x[i].m > most ? x[i].m : most;
    for (int64_t r = 0; r < most; r += 16) {
        __m512i v[16];
        for (int i = 0; i < 16; i++) {
            v[i] = _mm512_mask_loadu_epi32(GREATEST, lanes(x[i].m - r), x[i].keys + r);
        }
        transpose(v);
        for (int i = 0; i < 16; i++) _mm512_store_si512(few + 16 * (r + i), key_i32(v[i]));
    }
    int depth = 0;
    while (FC_ORDER_LEAF << depth < most) depth++;
    sort_i32(pointers, most, depth, 0, sorted, spare, &unused, &none);
    int32_t found[2][16] __attribute__((aligned(64)));
    for (int i = 0; i < 16; i++) {
        const int32_t* at = (const int32_t*)(sorted + x[i].k) + i;
        found[0][i] = at[0];
        found[1][i] = x[i].k + 1 < x[i].m ? at[16] : x[i].next;
    }
    *low = _mm512_load_si512(found[0]);
    *high = _mm512_load_si512(found[1]);
}

/* Medians of columns `offset` to that plus `length` >= 16. */
INLINE int run_select(const void* const* rows, int64_t n, int64_t offset, int64_t length, void* scratch, double* acc,
                      fc_dtype type) {
    const int size = fc_itemsize(type);
    state_i32 state = begin_i32();
    const int64_t stride = ((fc_ceil(n, 16) + 1) | 1) * 16,
                  k = (n - 1) / 2; /* odd: columns in different sets of a cache */
    const char* const* at = (const char* const*)rows;
    int64_t sample = 64, reach = 1;
    while (sample < SAMPLE_MOST && sample * sample < 16 * n) sample += 32;
    while (reach * reach * 4 < 9 * sample) reach++; /* three standard deviations of the median's place in the sample */
    const int groups = n * FC_ORDER_STRETCH > AHEAD_MOST ? GROUPS : 1;
    int32_t *const columns = scratch, *const spares = columns + 16 * groups * stride;
    V *const sorted = (V*)(spares + 16 * stride), *const spare = sorted + SAMPLE_MOST, *const few = spare + SAMPLE_MOST,
             *const widened = few + FEW;
    const char **const sampled = (const char**)(widened + SAMPLE_MOST), **const fewest = sampled + SAMPLE_MOST;
    for (int64_t i = 0; i < sample; i++) sampled[i] = type == FC_F32 ? at[i * n / sample] : (const char*)(widened + i);
    for (int64_t i = 0; i < FEW; i++) fewest[i] = (const char*)(few + i);
    int depth = 1; /* a sample has two leaves or more */
    while (FC_ORDER_LEAF << depth < sample) depth++;
    for (int64_t c = 0, group = 0; c < length; c += LANES, group++) {
        if (c + LANES > length) c = length - LANES, group = 0;
        const int64_t here = (offset + c) * size;
        ahead_t none = {at, at, 0}, ahead = groups > 1 ? none : ahead_of(at, n, here, LANES * size, 1);
        group %= groups;
        if (!group) columns_of(at, n, here, (int)fc_min((length - c) / LANES, groups), columns, stride, &state, type);
        if (bad_i32(&state)) return 1;
        if (type != FC_F32)
            for (int64_t i = 0; i < sample; i++) widened[i] = bits_of(at[i * n / sample] + here, type);
        sort_i32(sampled, sample, depth, type == FC_F32 ? here : 0, sorted, spare, &state, &none);
        int32_t *lows = (int32_t*)(sorted + sample / 2 - reach), *highs = (int32_t*)(sorted + sample / 2 + reach);
        remnant x[16];
        for (int missed = 1; missed;) {
            missed = 0;
            for (int i = 0; i < 16; i++) {
                x[i].keys = columns + (16 * group + i) * stride;
                x[i].spare = spares + i * stride;
                if (bracket(x + i, n, k, lows[i], highs[i], &ahead)) continue;
                lows[i] = ~0x7f800000, highs[i] = 0x7f800000;
                missed = 1;
            }
            if (missed) columns_of(at, n, here, 1, columns + 16 * group * stride, stride, &state, type);
        }
        for (int turn = 0, busy = 1; busy; turn++) {
            busy = 0;
            for (int i = 0; i < 16; i++)
                if (x[i].m > FEW) {
                    divide(x + i, turn);
                    busy = 1;
                }
        }
        V low, high;
        last_of(x, (int32_t*)few, sorted, spare, fewest, &low, &high);
        put_middle_i32(low, n % 2 ? low : high, acc + c);
        while (ahead.row != ahead.end) ask(&ahead);
    }
    return 0;
}
