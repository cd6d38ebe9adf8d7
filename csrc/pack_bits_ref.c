/* Portable packing: bits wait in a 128-bit word until 64 of them can be written, or there are enough for a residue. */
#include "impl.h"

typedef unsigned __int128 waiting;

static uint64_t residue(const void* residues, int bits, int64_t k) {
    return bits > 32 ? ((const uint64_t*)residues)[k] : ((const uint32_t*)residues)[k];
}

void fc_pack_bits_ref(const void* residues, int bits, int64_t count, uint8_t* out) {
    const uint64_t mask = ~0ull >> (64 - bits);
    waiting bits_now = 0;
    int have = 0;
    for (int64_t k = 0; k < count; k++) {
        bits_now |= (waiting)(residue(residues, bits, k) & mask) << have;
        have += bits;
        if (have < 64) continue;
        const uint64_t word = (uint64_t)bits_now;
        memcpy(out, &word, 8);
        out += 8, have -= 64, bits_now >>= 64;
    }
    const uint64_t word = (uint64_t)bits_now;
    memcpy(out, &word, (size_t)(have + 7) / 8);
}

void fc_unpack_add_ref(const uint8_t* packed, int bits, int64_t count, void* total) {
    const uint64_t mask = ~0ull >> (64 - bits);
    int64_t left = (count * bits + 7) / 8;
    waiting bits_now = 0;
    int have = 0;
    for (int64_t k = 0; k < count; k++) {
        if (have < bits) {
            const int64_t bytes = fc_min(left, 8);
            uint64_t word = 0;
            memcpy(&word, packed, (size_t)bytes);
            bits_now |= (waiting)word << have;
            packed += bytes, left -= bytes, have += 8 * (int)bytes;
        }
        const uint64_t sum = (residue(total, bits, k) + (uint64_t)bits_now) & mask;
        if (bits > 32) ((uint64_t*)total)[k] = sum;
        else ((uint32_t*)total)[k] = (uint32_t)sum;
        bits_now >>= bits, have -= bits;
    }
}
