/* The roof in portable C: read `count` rows side by side and OR their words. */
#include "impl.h"

uint64_t fc_read_ref(const void* const* rows, int count, int64_t bytes) {
    uint64_t seen = 0;
    int64_t k = 0;
    for (; k + 64 <= bytes; k += 64)
        for (int r = 0; r < count; r++) {
            uint64_t words[8];
            memcpy(words, (const char*)rows[r] + k, 64);
            for (int w = 0; w < 8; w++) seen |= words[w];
        }
    for (; k < bytes; k++)
        for (int r = 0; r < count; r++) seen |= ((const uint8_t*)rows[r])[k];
    return seen;
}
