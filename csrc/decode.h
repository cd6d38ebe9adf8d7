/* Whole blocks by an ISA's own step, and what is left at both ends by the portable kernels. Included by decode_<isa>.c,
 * which defines int8_block and nf4_block: FC_BLOCK elements, the first at an element that is a multiple of FC_BLOCK. */
enum { DECODE_AHEAD = 1024 }; /* bytes: how far ahead of the load a line is asked for */
#define DECODE(name, step, bytes, isa)                                                                           \
    void fc_decode_##name##_##isa(const void* payload, const void* const* scales, int64_t first, int64_t length, \
                                  float* out) {                                                                  \
        const int64_t head = fc_min((FC_BLOCK - first % FC_BLOCK) % FC_BLOCK, length);                           \
        fc_decode_##name##_ref(payload, scales, first, head, out);                                               \
        int64_t k = head;                                                                                        \
        for (; k + FC_BLOCK <= length; k += FC_BLOCK) {                                                          \
            const int64_t block = (first + k) / FC_BLOCK;                                                        \
            __builtin_prefetch((const uint8_t*)payload + block * (bytes) + DECODE_AHEAD);                        \
            step((const uint8_t*)payload + block * (bytes), fc_##name##_scale(scales, block), out + k);          \
        }                                                                                                        \
        fc_decode_##name##_ref(payload, scales, first + k, length - k, out + k);                                 \
    }
