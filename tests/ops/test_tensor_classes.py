"""Classes made from torch's tensor are taken as it is; tensors that hold no memory of their own are refused by name."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import DTypeError, ShapeError

torch = pytest.importorskip("torch")


class Annotated(torch.Tensor):
    """As MONAI's MetaTensor and fastai's TensorBase are: a class outside torch, whose results are of it again."""


X = torch.arange(12, dtype=torch.float32).reshape(3, 4) - 5
Y = X.T.contiguous()
#: what a message calls it -> (a tensor that is taken there, how it is given)
TAKEN = {
    "rows": (X, lambda x: fc.ops.weighted_sum(x, [1.0] * 3)),
    "row 1": (X[1], lambda x: fc.ops.median([X[0], x, X[2]])),
    "row 0": (X[0].bfloat16(), lambda x: fc.ops.gram([x])),
    "center": (X[0], lambda x: fc.ops.squared_norms(X, x)),
    "weights": (X[:, 0], lambda x: fc.ops.weighted_sum(X, x)),
    "out": (X[0], lambda x: fc.ops.weighted_sum(X, [1.0] * 3, out=x)),
    "noise": (X[0].long(), lambda x: fc.ops.clip_noise_accumulate(X, 1.0, noise=x).sum),
    "base": (X, lambda x: fc.ops.lora_delta_sum([torch.ones(3, 1)], [torch.ones(1, 4)], [1.0], base=x)),
    "client 0: b": (X, lambda x: fc.ops.lora_delta_sum([x], [Y], [1.0])),
    "lora_truncate: b": (X, lambda x: fc.ops.lora_truncate(x, Y, [1.0] * 4, 2)[2].b),
    "hadamard: x": (X[0], lambda x: fc.ops.hadamard(x, 4)),
    "mask_add: values": (X[0], lambda x: fc.ops.mask_add(x, [bytes(32)], [1], 32, scale=1.0, limit=9)),
    "tensor 'w'": (X, lambda x: fc.Update.from_tensors({"w": x}).tensors["w"]),
    "tensor 'v'": (Y.bfloat16().T, lambda x: fc.Update.from_tensors({"v": x}).tensors["v"].view(np.int16)),
}
NO_MEMORY = "whose elements lie in no memory of its own; pass "
WRAPPED = "a tensor inside torch.vmap or torch.func has no memory; call it outside"


@pytest.fixture(scope="module")
def mesh():
    """One process that DTensors are spread over."""
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available():
        pytest.skip("this torch has no torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def cut(tensor, size: int):
    """A copy whose storage is cut to some bytes after it was made, as FSDP cuts it to none."""
    copy = tensor.clone()
    copy.untyped_storage().resize_(size)
    return copy


def refusal(what: str, given) -> tuple[type[Exception], str]:
    """The error for what is given, and its words after the name of the argument; more than a line would not match."""
    with pytest.raises((DTypeError, ShapeError), match=rf"\A{re.escape(what)}: .*\Z") as caught:
        TAKEN[what][1](given)
    return caught.type, str(caught.value).removeprefix(f"{what}: ")


@pytest.mark.parametrize("what", TAKEN)
def test_classes_made_outside_torch_are_taken(what):
    tensor, give = TAKEN[what]
    expected, found = give(tensor.clone()), give(tensor.clone().as_subclass(Annotated))
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_parameters_and_rows_of_several_classes():
    expected = X.sum(0)
    assert torch.equal(fc.ops.weighted_sum(torch.nn.Parameter(X), [1.0] * 3), expected)
    assert torch.equal(fc.ops.weighted_sum([X[0], X[1].as_subclass(Annotated), X[2]], [1.0] * 3), expected)
    assert fc.rules.Krum(0)(X.as_subclass(Annotated)).tolist() == fc.rules.Krum(0)(X).tolist()


@pytest.mark.parametrize("what", TAKEN)
def test_storage_that_was_freed_or_cut(what):
    size = TAKEN[what][0].nbytes
    for held in (0, size - 2):
        words = (
            f"its storage has {held} bytes, expected {size}: it was freed, as FSDP does between uses; gather it first"
        )
        error, said = refusal(what, cut(TAKEN[what][0].contiguous(), held))
        assert (error, said.startswith(words)) == (ShapeError, True)


def test_what_a_view_needs_of_its_storage():
    """A slice needs what lies before it, too, and a broadcast no more than it repeats."""
    whole = torch.arange(12, dtype=torch.float32)
    for view in (whole[8:], whole[1::3], whole.reshape(3, 4).T, whole[:1].expand(5), whole[12:], whole[3]):
        assert np.array_equal(fc.Update.from_tensors({"w": view}).tensors["w"], view.numpy())
    copy = whole.clone()
    views = {48: copy[8:], 44: copy[1::3], 40: copy.reshape(3, 4)[:, :2].T, 0: copy[12:]}
    copy.untyped_storage().resize_(36)
    for needed, view in views.items():
        if needed:
            with pytest.raises(ShapeError, match=f"tensor 'w': its storage has 36 bytes, expected {needed}:"):
                fc.Update.from_tensors({"w": view})
    assert fc.Update.from_tensors({"w": views[0]}).tensors["w"].size == 0
    assert fc.ops.weighted_sum([copy[:9]], [0.0]).tolist() == [0.0] * 9


@pytest.mark.parametrize("what", TAKEN)
def test_fake_tensors(what):
    fake = torch._subclasses.FakeTensorMode().from_tensor(TAKEN[what][0])
    error, said = refusal(what, fake)
    assert (error, said.startswith(f"got FakeTensor, {NO_MEMORY}a plain tensor")) == (DTypeError, True)


@pytest.mark.parametrize("what", TAKEN)
def test_distributed_tensors(what, mesh):
    from torch.distributed.tensor import Replicate, distribute_tensor

    spread = distribute_tensor(TAKEN[what][0], mesh, [Replicate()])
    error, said = refusal(what, spread)
    assert (error, said.startswith(f"got DTensor, {NO_MEMORY}.full_tensor()")) == (DTypeError, True)


@pytest.mark.parametrize("what", TAKEN)
def test_inside_vmap(what):
    found = []

    def inside(x):
        found.append(refusal(what, x))
        return x

    torch.vmap(inside)(torch.stack([TAKEN[what][0]] * 2))
    assert [(error, said.startswith(WRAPPED)) for error, said in found] == [(DTypeError, True)]


@pytest.mark.parametrize("what", ["rows", "client 0: b", "tensor 'w'"])
def test_inside_functional_gradients(what):
    found = []

    def inside(x):
        found.append(refusal(what, x))
        return x.sum()

    torch.func.grad(inside)(TAKEN[what][0])
    assert [(error, said.startswith(WRAPPED)) for error, said in found] == [(DTypeError, True)]
