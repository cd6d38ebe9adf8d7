"""Triton kernels, one file per op: a `@triton.jit` family and its launcher. Installed as `fedcore.kernels`.

They run on NVIDIA and AMD GPUs, and on a CPU under Triton's interpreter (TRITON_INTERPRET=1 before triton is
imported). Rows are never stacked: a kernel gets a table of their addresses. Every launch sets
`enable_fp_fusion=False`, so that a product and an addition stay two roundings where a law says so.

Their speed on a GPU has not been measured yet; tile sizes follow from the arithmetic in each file.
"""

# imported here so that a machine without torch or triton learns it from `import fedcore.kernels`
import torch  # noqa: F401
import triton  # noqa: F401
