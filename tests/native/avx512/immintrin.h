/* AVX-512 F, BW and DQ in portable C by SIMDe (0.7.4 is tried) and missing.h, for kernels compiled for AVX2 and FMA.
 * What is left of the compiler's own AVX-512 is refused without its flags, so nothing falls through to it. */
#include_next <immintrin.h>
#ifndef FEDCORE_EMULATED_AVX512
#define FEDCORE_EMULATED_AVX512
#define SIMDE_X86_AVX512F_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512BW_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512DQ_ENABLE_NATIVE_ALIASES
#define SIMDE_X86_AVX512VL_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512/mov_mask.h>
#include <simde/x86/avx512/types.h>
#if !defined(SIMDE_X86_FMA_NATIVE) || !SIMDE_NATURAL_VECTOR_SIZE_LE(256)
#error "SIMDe would round twice in a fused multiply-add: compile for AVX2 and FMA"
#endif
#define __m512 simde__m512
#define __m512d simde__m512d
#define __m512i simde__m512i
#include "missing.h"
/* a SIMDe that has one of them takes its own */
#include <simde/x86/avx512.h>
/* 0.7.4 gives the name four arguments */
#undef _mm512_mask_cmple_epi32_mask
#define _mm512_mask_cmple_epi32_mask simde_mm512_mask_cmple_epi32_mask
#endif
