"""Which tensors are LoRA factors: PEFT's names, paired and checked."""

from __future__ import annotations

from typing import NamedTuple

from fedcore.errors import LayoutError
from fedcore.numbers import shown
from fedcore.updates.layout import Layout

#: suffix of a factor -> suffix of its partner. PEFT's embedding factors are bare parameters, without ".weight"
_PARTNERS_OF_A = {".lora_A.weight": ".lora_B.weight", ".lora_embedding_A": ".lora_embedding_B"}
_PARTNERS_OF_B = {b: a for a, b in _PARTNERS_OF_A.items()}

_REFUSED = {
    "lora_magnitude_vector": "DoRA's magnitudes make the update non-linear in B·A; train with use_dora=False",
    "lora_E": "AdaLoRA's singular values stand between B and A; convert the adapter to plain LoRA",
    "lora_diag": "KaSA's diagonal stands between B and A; convert the adapter to plain LoRA",
    "lora_B": "a bias on lora_B belongs to no factor of the update; train with lora_bias=False",
}


class LoraPair(NamedTuple):
    """One adapted module: Δ = scale · B · A.

    a, b      names of A, (rank, d_in), and B, (d_out, rank); of an embedding d_in counts tokens and Δ is its transpose
    scale     alpha / rank, or alpha / sqrt(rank) with rsLoRA
    """

    a: str
    b: str
    rank: int
    d_in: int
    d_out: int
    scale: float

    @property
    def embedding(self) -> bool:
        """Whether the module is an embedding, whose weights lie as (d_in, d_out)."""
        return self.a.endswith(".lora_embedding_A")


def lora_pairs(layout: Layout) -> tuple[dict[str, LoraPair], tuple[str, ...]]:
    """The pairs by module (sorted by module name; scale NaN, as names do not say it) and the names in no pair.

    Raises LayoutError naming the tensor: a factor without its partner, a rank of 0, ranks that differ between A and B,
    factors that are not matrices, and variants whose update is not B·A (DoRA, AdaLoRA, KaSA, lora_bias).
    """
    pairs: dict[str, LoraPair] = {}
    dense = []
    for name in layout.names:
        if ".lora_" not in f".{name}":
            dense.append(name)
            continue
        module, suffix = _split(name)
        if suffix in _PARTNERS_OF_B:
            _require(layout, name, module + _PARTNERS_OF_B[suffix])
        elif module in pairs:
            raise LayoutError(
                f"tensor {shown(name)}: module {shown(module)} already has the factor {shown(pairs[module].a)}"
            )
        else:
            pairs[module] = _pair(layout, name, module + _PARTNERS_OF_A[suffix])
    return dict(sorted(pairs.items())), tuple(dense)


def _split(name: str) -> tuple[str, str]:
    """(module, suffix) of a factor's name."""
    for suffix in (*_PARTNERS_OF_A, *_PARTNERS_OF_B):
        if name.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], suffix
    role = next(part for part in reversed(name.split(".")) if part.startswith("lora_"))
    why = _REFUSED.get(role, "expected <module>.lora_A.weight, .lora_B.weight, .lora_embedding_A or .lora_embedding_B")
    raise LayoutError(f"tensor {shown(name)}: {role} is not supported: {why}")


def _require(layout: Layout, name: str, partner: str) -> None:
    if partner not in layout.index:
        raise LayoutError(
            f"tensor {shown(name)}: its partner {shown(partner)} is missing; send both factors of a module"
        )


def _pair(layout: Layout, a: str, b: str) -> LoraPair:
    _require(layout, a, b)
    shape_a, shape_b = layout.shapes[layout.index[a]], layout.shapes[layout.index[b]]
    for name, shape in ((a, shape_a), (b, shape_b)):
        if len(shape) != 2:
            raise LayoutError(
                f"tensor {shown(name)}: got shape {shape}, expected a matrix, as LoRA on convolutions is not "
                "supported; leave them out of the clients' target_modules"
            )
    if 0 in shape_a + shape_b:
        name, shape = (a, shape_a) if 0 in shape_a else (b, shape_b)
        raise LayoutError(
            f"tensor {shown(name)}: got shape {shape}, expected a rank and sizes of at least 1; gather its shards"
        )
    if shape_a[0] != shape_b[1]:
        raise LayoutError(
            f"tensor {shown(b)}: has rank {shape_b[1]} (shape {shape_b}), expected {shape_a[0]} like {shown(a)} "
            f"(shape {shape_a}); the factors belong to different adapters"
        )
    return LoraPair(a, b, shape_a[0], shape_a[1], shape_b[0], float("nan"))
