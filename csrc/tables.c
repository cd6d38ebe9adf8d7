/* One table of kernels per ISA. An ISA gets an implementation of its own where it pays; the rest is the portable one.
 */
#include "impl.h"

#define DECLARE_ACCUMULATE(isa) \
    fc_accumulate_fn fc_weighted_sum_f32_##isa, fc_weighted_sum_f16_##isa, fc_weighted_sum_bf16_##isa;
#define DECLARE_FINISH(prefix, isa)                                                          \
    fc_finish_fn fc_weighted_sum_##prefix##_f32_##isa, fc_weighted_sum_##prefix##_f16_##isa, \
        fc_weighted_sum_##prefix##_bf16_##isa, fc_weighted_sum_##prefix##_f64_##isa;
#define DECLARE_SUMS(isa)                                                             \
    fc_sums_pack_fn fc_weighted_sums_pack_f32_##isa, fc_weighted_sums_pack_f16_##isa, \
        fc_weighted_sums_pack_bf16_##isa;                                             \
    fc_sums_tile_fn fc_weighted_sums_tile_##isa;                                      \
    fc_sums_few_fn fc_weighted_sums_few_f32_##isa, fc_weighted_sums_few_f16_##isa, fc_weighted_sums_few_bf16_##isa;
#define DECLARE_SIGNS(isa) fc_signs_fn fc_sign_counts_f32_##isa, fc_sign_counts_f16_##isa, fc_sign_counts_bf16_##isa;
#define DECLARE_EXACT(isa) fc_exact_add_fn fc_exact_sum_f32_##isa, fc_exact_sum_f16_##isa, fc_exact_sum_bf16_##isa;
#define DECLARE_NORM(isa) \
    fc_block_norm_fn fc_squared_norms_f32_##isa, fc_squared_norms_f16_##isa, fc_squared_norms_bf16_##isa;
#define DECLARE_CLIP(isa)                                                                               \
    fc_clip_round_fn fc_clip_round_f32_##isa, fc_clip_round_f16_##isa, fc_clip_round_bf16_##isa;        \
    fc_clip_noise_accumulate_fn fc_clip_noise_accumulate_f32_##isa, fc_clip_noise_accumulate_f16_##isa, \
        fc_clip_noise_accumulate_bf16_##isa;
#define DECLARE_HADAMARD(isa)                   \
    fc_hadamard_near_fn fc_hadamard_near_##isa; \
    fc_hadamard_far_fn fc_hadamard_far_##isa;
#define DECLARE_PACK(isa) fc_gram_pack_fn fc_gram_pack_f32_##isa, fc_gram_pack_f16_##isa, fc_gram_pack_bf16_##isa;
#define DECLARE_TO_F32(isa) fc_to_f32_fn fc_to_f32_f32_##isa, fc_to_f32_f16_##isa, fc_to_f32_bf16_##isa;
#define DECLARE_ORDER(isa) fc_order_fn fc_order_f32_##isa, fc_order_f16_##isa, fc_order_bf16_##isa;

#define DECLARE_DECODE(isa) fc_decode_fn fc_decode_int8_##isa, fc_decode_nf4_##isa;

#define THREE(stem, isa) {stem##_f32_##isa, stem##_f16_##isa, stem##_bf16_##isa}
#define FOUR(stem, isa) {stem##_f32_##isa, stem##_f16_##isa, stem##_bf16_##isa, stem##_f64_##isa}

const fc_kernels fc_kernels_ref = {
    .accumulate = THREE(fc_weighted_sum, ref),
    .finish = {FOUR(fc_weighted_sum_to, ref), FOUR(fc_weighted_sum_to, ref), FOUR(fc_weighted_sum_to, ref)},
    .sums_pack = THREE(fc_weighted_sums_pack, ref),
    .sums_tile = fc_weighted_sums_tile_ref,
    .sums_few = THREE(fc_weighted_sums_few, ref),
    .signs = THREE(fc_sign_counts, ref),
    .exact_add = THREE(fc_exact_sum, ref),
    .block_norm = THREE(fc_squared_norms, ref),
    .hadamard_near = fc_hadamard_near_ref,
    .hadamard_far = fc_hadamard_far_ref,
    .clip_round = THREE(fc_clip_round, ref),
    .clip_noise_accumulate = THREE(fc_clip_noise_accumulate, ref),
    .gram_pack = THREE(fc_gram_pack, ref),
    .gram_tile = fc_gram_tile_ref,
    .pair_squares = fc_pair_squares_ref,
    .lora_tile = fc_lora_tile_ref,
    .lora_gram_tile = fc_lora_gram_tile_ref,
    .chacha20 = &fc_chacha20_ref,
    .gaussian = &fc_discrete_gaussian_ref,
    .quantise = {{fc_quantise_f32_32_ref, fc_quantise_f32_64_ref}, {fc_quantise_f64_32_ref, fc_quantise_f64_64_ref}},
    .reduce = fc_reduce_ref,
    .pack_bits = fc_pack_bits_ref,
    .unpack_add = fc_unpack_add_ref,
    .gf_sum = fc_gf_sum_ref,
    .gf_horner = fc_gf_horner_ref,
    .gram_block = FC_GRAM_BLOCK,
    .gram_panel = FC_GRAM_PANEL * FC_GRAM_BLOCK * sizeof(float),
    .gram_packed = 512 << 10,
    .to_f32 = THREE(fc_to_f32, ref),
    .read = fc_read_ref,
    .decode = {fc_decode_int8_ref, fc_decode_nf4_ref},
    .order = THREE(fc_order, ref),
};

#if defined(__x86_64__)
DECLARE_ACCUMULATE(avx2)
DECLARE_SIGNS(avx2)
DECLARE_FINISH(to, avx2)
DECLARE_FINISH(split_to, avx2)
DECLARE_SUMS(avx2)
DECLARE_EXACT(avx2)
DECLARE_NORM(avx2)
DECLARE_CLIP(avx2)
DECLARE_HADAMARD(avx2)
DECLARE_PACK(avx2)
DECLARE_TO_F32(avx2)
DECLARE_DECODE(avx2)
DECLARE_ORDER(avx2)
fc_gram_products_fn fc_gram_products_avx2;
fc_pair_squares_fn fc_pair_squares_avx2;
fc_lora_tile_fn fc_lora_tile_avx2;
fc_lora_gram_tile_fn fc_lora_gram_tile_avx2;
fc_quantise_fn fc_quantise_f32_32_avx2, fc_quantise_f64_32_avx2;
fc_reduce_fn fc_reduce_avx2;
fc_pack_bits_fn fc_pack_bits_avx2;
fc_unpack_add_fn fc_unpack_add_avx2;
fc_gf_sum_fn fc_gf_sum_avx2;
fc_gf_horner_fn fc_gf_horner_avx2;

const fc_kernels fc_kernels_avx2 = {
    .accumulate = THREE(fc_weighted_sum, avx2),
    .finish = {FOUR(fc_weighted_sum_to, avx2), FOUR(fc_weighted_sum_to, avx2), FOUR(fc_weighted_sum_split_to, avx2)},
    .sums_pack = THREE(fc_weighted_sums_pack, avx2),
    .sums_tile = fc_weighted_sums_tile_avx2,
    .sums_few = THREE(fc_weighted_sums_few, avx2),
    .signs = THREE(fc_sign_counts, avx2),
    .exact_add = THREE(fc_exact_sum, avx2),
    .block_norm = THREE(fc_squared_norms, avx2),
    .hadamard_near = fc_hadamard_near_avx2,
    .hadamard_far = fc_hadamard_far_avx2,
    .clip_round = THREE(fc_clip_round, avx2),
    .clip_noise_accumulate = THREE(fc_clip_noise_accumulate, avx2),
    .gram_pack = THREE(fc_gram_pack, avx2),
    .gram_products = fc_gram_products_avx2,
    .pair_squares = fc_pair_squares_avx2,
    .lora_tile = fc_lora_tile_avx2,
    .lora_gram_tile = fc_lora_gram_tile_avx2,
    .chacha20 = &fc_chacha20_avx2,
    .gaussian = &fc_discrete_gaussian_avx2,
    .quantise = {{fc_quantise_f32_32_avx2, fc_quantise_f32_64_ref}, {fc_quantise_f64_32_avx2, fc_quantise_f64_64_ref}},
    .reduce = fc_reduce_avx2,
    .pack_bits = fc_pack_bits_avx2,
    .unpack_add = fc_unpack_add_avx2,
    .gf_sum = fc_gf_sum_avx2,
    .gf_horner = fc_gf_horner_avx2,
    .gram_block = FC_GRAM_BLOCK,
    .gram_panel = FC_GRAM_PANEL * FC_GRAM_BLOCK * sizeof(float),
    .gram_packed = 256 << 10,
    .to_f32 = THREE(fc_to_f32, avx2),
    .read = fc_read_ref,
    .decode = {fc_decode_int8_avx2, fc_decode_nf4_avx2},
    .order = THREE(fc_order, avx2),
};

DECLARE_ACCUMULATE(avx512)
DECLARE_SIGNS(avx512)
DECLARE_FINISH(to, avx512)
DECLARE_FINISH(split_to, avx512)
DECLARE_SUMS(avx512)
DECLARE_EXACT(avx512)
DECLARE_NORM(avx512)
DECLARE_CLIP(avx512)
DECLARE_HADAMARD(avx512)
DECLARE_PACK(avx512)
DECLARE_TO_F32(avx512)
DECLARE_DECODE(avx512)
DECLARE_ORDER(avx512)
fc_gram_products_fn fc_gram_products_avx512;
fc_pair_squares_fn fc_pair_squares_avx512;
fc_lora_tile_fn fc_lora_tile_avx512;
fc_lora_gram_tile_fn fc_lora_gram_tile_avx512;
fc_quantise_fn fc_quantise_f32_32_avx512, fc_quantise_f32_64_avx512, fc_quantise_f64_32_avx512,
    fc_quantise_f64_64_avx512;
fc_reduce_fn fc_reduce_avx512;
fc_pack_bits_fn fc_pack_bits_avx512;
fc_unpack_add_fn fc_unpack_add_avx512;
fc_read_fn fc_read_avx512;

/* What both AVX-512 instruction sets share. */
#define AVX512_KERNELS                                                                                                 \
    .accumulate = THREE(fc_weighted_sum, avx512),                                                                      \
    .finish = {FOUR(fc_weighted_sum_to, avx512), FOUR(fc_weighted_sum_to, avx512),                                     \
               FOUR(fc_weighted_sum_split_to, avx512)},                                                                \
    .sums_pack = THREE(fc_weighted_sums_pack, avx512), .sums_tile = fc_weighted_sums_tile_avx512,                      \
    .sums_few = THREE(fc_weighted_sums_few, avx512), .signs = THREE(fc_sign_counts, avx512),                           \
    .exact_add = THREE(fc_exact_sum, avx512), .block_norm = THREE(fc_squared_norms, avx512),                           \
    .hadamard_near = fc_hadamard_near_avx512, .hadamard_far = fc_hadamard_far_avx512,                                  \
    .clip_round = THREE(fc_clip_round, avx512), .clip_noise_accumulate = THREE(fc_clip_noise_accumulate, avx512),      \
    .pair_squares = fc_pair_squares_avx512, .lora_tile = fc_lora_tile_avx512,                                          \
    .lora_gram_tile = fc_lora_gram_tile_avx512, .to_f32 = THREE(fc_to_f32, avx512), .read = fc_read_avx512,            \
    .chacha20 = &fc_chacha20_avx512, .gaussian = &fc_discrete_gaussian_avx512,                                         \
    .quantise = {{fc_quantise_f32_32_avx512, fc_quantise_f32_64_avx512},                                               \
                 {fc_quantise_f64_32_avx512, fc_quantise_f64_64_avx512}},                                              \
    .reduce = fc_reduce_avx512, .pack_bits = fc_pack_bits_avx512, .unpack_add = fc_unpack_add_avx512,                  \
    .gf_sum = fc_gf_sum_avx2, .gf_horner = fc_gf_horner_avx2, .decode = {fc_decode_int8_avx512, fc_decode_nf4_avx512}, \
    .order = THREE(fc_order, avx512)

const fc_kernels fc_kernels_avx512 = {
    AVX512_KERNELS,
    .gram_pack = THREE(fc_gram_pack, avx512),
    .gram_products = fc_gram_products_avx512,
    .gram_block = FC_GRAM_BLOCK,
    .gram_panel = FC_GRAM_PANEL * FC_GRAM_BLOCK * sizeof(float),
    .gram_packed = 512 << 10,
};

#if defined(FC_AMX)
DECLARE_PACK(amx)
fc_gram_products_fn fc_gram_products_amx;

const fc_kernels fc_kernels_amx = {
    AVX512_KERNELS,
    .gram_pack = THREE(fc_gram_pack, amx),
    .gram_products = fc_gram_products_amx,
    .gram_block = FC_GRAM_BLOCK_AMX,
    .gram_panel = FC_GRAM_PANEL_AMX,
    .gram_packed = 512 << 10,
};
#endif

#elif defined(__aarch64__)
DECLARE_ACCUMULATE(neon)
DECLARE_SIGNS(neon)
DECLARE_SUMS(neon)
DECLARE_NORM(neon)
DECLARE_CLIP(neon)
DECLARE_HADAMARD(neon)
DECLARE_ORDER(neon)
fc_finish_fn fc_weighted_sum_to_f16_neon, fc_weighted_sum_to_bf16_neon;
fc_gram_tile_fn fc_gram_tile_neon;
fc_lora_tile_fn fc_lora_tile_neon;
fc_lora_gram_tile_fn fc_lora_gram_tile_neon;
fc_quantise_fn fc_quantise_f32_32_neon, fc_quantise_f32_64_neon, fc_quantise_f64_32_neon, fc_quantise_f64_64_neon;
fc_gf_sum_fn fc_gf_sum_neon;
fc_gf_horner_fn fc_gf_horner_neon;
#define FINISH_NEON \
    {fc_weighted_sum_to_f32_ref, fc_weighted_sum_to_f16_neon, fc_weighted_sum_to_bf16_neon, fc_weighted_sum_to_f64_ref}

const fc_kernels fc_kernels_neon = {
    .accumulate = THREE(fc_weighted_sum, neon),
    .finish = {FINISH_NEON, FINISH_NEON, FINISH_NEON},
    .sums_pack = THREE(fc_weighted_sums_pack, neon),
    .sums_tile = fc_weighted_sums_tile_neon,
    .sums_few = THREE(fc_weighted_sums_few, neon),
    .signs = THREE(fc_sign_counts, neon),
    .exact_add = THREE(fc_exact_sum, ref),
    .block_norm = THREE(fc_squared_norms, neon),
    .hadamard_near = fc_hadamard_near_neon,
    .hadamard_far = fc_hadamard_far_neon,
    .clip_round = THREE(fc_clip_round, neon),
    .clip_noise_accumulate = THREE(fc_clip_noise_accumulate, neon),
    .gram_pack = THREE(fc_gram_pack, ref),
    .gram_tile = fc_gram_tile_neon,
    .pair_squares = fc_pair_squares_ref,
    .lora_tile = fc_lora_tile_neon,
    .lora_gram_tile = fc_lora_gram_tile_neon,
    .chacha20 = &fc_chacha20_neon,
    .gaussian = &fc_discrete_gaussian_neon,
    .quantise = {{fc_quantise_f32_32_neon, fc_quantise_f32_64_neon},
                 {fc_quantise_f64_32_neon, fc_quantise_f64_64_neon}},
    .reduce = fc_reduce_ref,
    .pack_bits = fc_pack_bits_ref,
    .unpack_add = fc_unpack_add_ref,
    .gf_sum = fc_gf_sum_neon,
    .gf_horner = fc_gf_horner_neon,
    .gram_block = FC_GRAM_BLOCK,
    .gram_panel = FC_GRAM_PANEL * FC_GRAM_BLOCK * sizeof(float),
    .gram_packed = 512 << 10,
    .to_f32 = THREE(fc_to_f32, ref),
    .read = fc_read_ref,
    .decode = {fc_decode_int8_ref, fc_decode_nf4_ref},
    .order = THREE(fc_order, neon),
};
#endif
