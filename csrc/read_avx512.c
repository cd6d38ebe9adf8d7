/* The roof with AVX-512 F loads. */
#include <immintrin.h>

#include "impl.h"

uint64_t fc_read_avx512(const void* const* rows, int count, int64_t bytes) {
    __m512i seen[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    int64_t k = 0;
    for (; k + 256 <= bytes; k += 256)
        for (int r = 0; r < count; r++)
            for (int v = 0; v < 4; v++)
                seen[v] = _mm512_or_si512(seen[v], _mm512_loadu_si512((const char*)rows[r] + k + 64 * v));
    uint64_t words[8], all = 0;
    _mm512_storeu_si512(words, _mm512_or_si512(_mm512_or_si512(seen[0], seen[1]), _mm512_or_si512(seen[2], seen[3])));
    for (int w = 0; w < 8; w++) all |= words[w];
    for (int r = 0; r < count; r++) {
        const void* rest = (const char*)rows[r] + k;
        all |= fc_read_ref(&rest, 1, bytes - k);
    }
    return all;
}
