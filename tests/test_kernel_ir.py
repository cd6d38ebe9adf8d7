"""The readers of IR that test_triton_compile.py relies on, on IR that Triton 3.7 made of kernels."""

from __future__ import annotations

from kernel_ir import narrow, stores, undefined

#: from unpack_add of 64 bits where it shifted by up to 64, for sm_90: every store is of poison
POISONED = """
define ptx_kernel void @_unpack_add_kernel(ptr addrspace(1) %0, ptr addrspace(1) %1, i64 %2) #0 !dbg !4 {
  %13 = insertelement <2 x i32> poison, i32 %11, i64 0, !dbg !16
  %18 = shufflevector <4 x i32> %15, <4 x i32> poison, <4 x i32> <i32 0, i32 1, i32 1, i32 poison>, !dbg !17
  %19 = or <4 x i32> %18, <i32 896, i32 768, i32 640, i32 poison>, !dbg !17
  tail call void asm sideeffect "@$2 st.global.b64 [ $1 ], { $0 };", "l,l,b"(i64 poison, ptr addrspace(1) %374, i1 %30)
  tail call void asm sideeffect "@$2 st.global.b64 [ $1 ], { $0 };", "l,l,b"(i64 %375, ptr addrspace(1) %376, i1 %32)
  ret void, !dbg !29
}
"""
#: and for gfx942, where nothing is left
EMPTY = """
define amdgpu_kernel void @_unpack_add_kernel(ptr addrspace(1) inreg readnone captures(none) %0) #0 !dbg !4 {
  ret void, !dbg !13
}
"""
#: from kernels that are as they should be
SOUND = """
define amdgpu_kernel void @_mask_add_kernel(ptr addrspace(1) inreg readonly captures(none) %0) #0 !dbg !4 {
  %168 = tail call i32 @llvm.amdgcn.update.dpp.i32(i32 poison, i32 %167, i32 280, i32 15, i32 15, i1 true), !dbg !44
  %169 = insertvalue { i32, i32 } poison, i32 %168, 0, !dbg !44
  store <2 x i64> %170, ptr addrspace(1) %169, align 16, !dbg !45
  ret void, !dbg !46
}
!0 = distinct !DICompileUnit(producer: "poison")
"""
#: from hadamard where the offset of a row was a product of 32 bits, and where it is not
NARROW = """
    %parts = arith.divsi %stride, %c256_i32 : i32 loc(#loc53)
    %columns = arith.divsi %element, %cst : tensor<4096xi32> loc(#loc58)
    %columns_11 = tt.splat %stride : i32 -> tensor<4096xi32> loc(#loc60)
    %columns_12 = arith.muli %columns, %columns_11 : tensor<4096xi32> loc(#loc60)
    %2 = arith.addi %d, %c127_i32 : i32 loc(#loc152)
"""
WIDE = """
    %start_6 = arith.extsi %stride : i32 to i64 loc(#loc55)
    %columns = arith.extsi %element : tensor<4096xi32> to tensor<4096xi64> loc(#loc60)
    %columns_11 = tt.splat %start_6 : i64 -> tensor<4096xi64> loc(#loc60)
    %columns_12 = arith.muli %columns, %columns_11 : tensor<4096xi64> loc(#loc60)
    %3 = arith.muli %i, %c8_i32 : i32 loc(#loc61)
"""


def test_stores_are_found_and_missed():
    assert len(stores(POISONED)) == 2
    assert stores(EMPTY) == []
    assert len(stores(SOUND)) == 1


def test_operands_without_a_meaning_are_found():
    assert [line.split("(")[1] for line in undefined(POISONED)] == ["i64 poison, ptr addrspace"]
    assert undefined(SOUND) == []
    assert len(undefined(SOUND.replace("i32 %167", "i32 poison"))) == 1
    assert len(undefined(SOUND.replace("<2 x i64> %170", "<2 x i64> poison"))) == 1
    assert len(undefined("  %3 = insertelement <2 x i32> %2, i32 poison, i64 1")) == 1


def test_offsets_of_32_bits_are_found():
    assert [line.split(" ")[0] for line in narrow(NARROW)] == ["%columns_12", "%2"]
    assert narrow(WIDE) == []
