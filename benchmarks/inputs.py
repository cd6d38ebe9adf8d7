"""The inputs that benchmarks share: rows in buffers of their own, and a LoRA cohort of a 7B model's shape on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fedcore as fc

#: the linear layers of a Llama-2-7B block, (d_in, d_out); 32 blocks at r = 16 have 39,976,960 LoRA parameters
LINEAR = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 11008),
    "mlp.up_proj": (4096, 11008),
    "mlp.down_proj": (11008, 4096),
}


def rows(n: int, d: int, dtype: str = "float32") -> list[np.ndarray]:
    """n rows of standard normal numbers, each its own buffer: "float32", or "bfloat16" by truncation."""
    made = [np.random.default_rng(i).standard_normal(d, dtype=np.float32) for i in range(n)]
    if dtype == "float32":
        return made
    assert dtype == "bfloat16", dtype
    return [fc.bf16((row.view(np.uint32) >> 16).astype(np.uint16)) for row in made]


def lora_cohort(folder: Path, clients: int, layers: int = 32, rank: int = 16) -> list[Path]:
    """PEFT directories with bf16 factors of rank 16 for every linear layer: 448 tensors, 80 MB each."""
    found = []
    shapes = {}
    for layer in range(layers):
        for name, (d_in, d_out) in LINEAR.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            shapes[f"{module}.lora_A.weight"] = (rank, d_in)
            shapes[f"{module}.lora_B.weight"] = (d_out, rank)
    for client in range(clients):
        generator = np.random.default_rng(client)
        tensors = {
            name: fc.bf16((generator.standard_normal(shape, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16))
            for name, shape in shapes.items()
        }
        scaling = {name.removesuffix(".lora_A.weight"): 2.0 for name in shapes if "lora_A" in name}
        update = fc.Update.from_tensors(
            tensors, num_examples=100 + client, client_id=f"client-{client:02d}", scaling=scaling
        )
        found.append(folder / f"client-{client:02d}")
        update.to_peft(found[-1])
    return found
