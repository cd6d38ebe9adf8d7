/* One table of kernels per ISA. An ISA gets an implementation of its own where it pays; the rest is the portable one.
 */
#include "impl.h"

#define DECLARE_ACCUMULATE(isa) \
    fc_accumulate_fn fc_weighted_sum_f32_##isa, fc_weighted_sum_f16_##isa, fc_weighted_sum_bf16_##isa;
#define DECLARE_FINISH(prefix, isa)                                                          \
    fc_finish_fn fc_weighted_sum_##prefix##_f32_##isa, fc_weighted_sum_##prefix##_f16_##isa, \
        fc_weighted_sum_##prefix##_bf16_##isa, fc_weighted_sum_##prefix##_f64_##isa;
#define DECLARE_NORM(isa) \
    fc_block_norm_fn fc_squared_norms_f32_##isa, fc_squared_norms_f16_##isa, fc_squared_norms_bf16_##isa;
#define DECLARE_PACK(isa) fc_gram_pack_fn fc_gram_pack_f32_##isa, fc_gram_pack_f16_##isa, fc_gram_pack_bf16_##isa;
#define DECLARE_TO_F32(isa) fc_to_f32_fn fc_to_f32_f32_##isa, fc_to_f32_f16_##isa, fc_to_f32_bf16_##isa;

#define THREE(stem, isa) {stem##_f32_##isa, stem##_f16_##isa, stem##_bf16_##isa}
#define FOUR(stem, isa) {stem##_f32_##isa, stem##_f16_##isa, stem##_bf16_##isa, stem##_f64_##isa}

const fc_kernels fc_kernels_ref = {
    .accumulate = THREE(fc_weighted_sum, ref),
    .finish = {FOUR(fc_weighted_sum_to, ref), FOUR(fc_weighted_sum_to, ref), FOUR(fc_weighted_sum_to, ref)},
    .block_norm = THREE(fc_squared_norms, ref),
    .gram_pack = THREE(fc_gram_pack, ref),
    .gram_tile = fc_gram_tile_ref,
    .to_f32 = THREE(fc_to_f32, ref),
    .read = fc_read_ref,
};

#if defined(__x86_64__)
DECLARE_ACCUMULATE(avx2)
DECLARE_FINISH(to, avx2)
DECLARE_FINISH(split_to, avx2)
DECLARE_NORM(avx2)
DECLARE_PACK(avx2)
DECLARE_TO_F32(avx2)
fc_gram_tile_fn fc_gram_tile_avx2;

const fc_kernels fc_kernels_avx2 = {
    .accumulate = THREE(fc_weighted_sum, avx2),
    .finish = {FOUR(fc_weighted_sum_to, avx2), FOUR(fc_weighted_sum_to, avx2), FOUR(fc_weighted_sum_split_to, avx2)},
    .block_norm = THREE(fc_squared_norms, avx2),
    .gram_pack = THREE(fc_gram_pack, avx2),
    .gram_tile = fc_gram_tile_avx2,
    .to_f32 = THREE(fc_to_f32, avx2),
    .read = fc_read_ref,
};

DECLARE_ACCUMULATE(avx512)
DECLARE_FINISH(to, avx512)
DECLARE_FINISH(split_to, avx512)
DECLARE_NORM(avx512)
DECLARE_PACK(avx512)
DECLARE_TO_F32(avx512)
fc_gram_tile_fn fc_gram_tile_avx512;
fc_read_fn fc_read_avx512;

const fc_kernels fc_kernels_avx512 = {
    .accumulate = THREE(fc_weighted_sum, avx512),
    .finish = {FOUR(fc_weighted_sum_to, avx512), FOUR(fc_weighted_sum_to, avx512),
               FOUR(fc_weighted_sum_split_to, avx512)},
    .block_norm = THREE(fc_squared_norms, avx512),
    .gram_pack = THREE(fc_gram_pack, avx512),
    .gram_tile = fc_gram_tile_avx512,
    .to_f32 = THREE(fc_to_f32, avx512),
    .read = fc_read_avx512,
};

#elif defined(__aarch64__)
DECLARE_ACCUMULATE(neon)
DECLARE_NORM(neon)
fc_finish_fn fc_weighted_sum_to_f16_neon, fc_weighted_sum_to_bf16_neon;
fc_gram_tile_fn fc_gram_tile_neon;
#define FINISH_NEON \
    {fc_weighted_sum_to_f32_ref, fc_weighted_sum_to_f16_neon, fc_weighted_sum_to_bf16_neon, fc_weighted_sum_to_f64_ref}

const fc_kernels fc_kernels_neon = {
    .accumulate = THREE(fc_weighted_sum, neon),
    .finish = {FINISH_NEON, FINISH_NEON, FINISH_NEON},
    .block_norm = THREE(fc_squared_norms, neon),
    .gram_pack = THREE(fc_gram_pack, ref),
    .gram_tile = fc_gram_tile_neon,
    .to_f32 = THREE(fc_to_f32, ref),
    .read = fc_read_ref,
};
#endif
