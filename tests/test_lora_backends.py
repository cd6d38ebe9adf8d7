"""A backend that somebody asks for in delta space runs, or the round is refused."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

from fedcore import aggregate, use_backend
from fedcore.backends import implementation
from fedcore.errors import BackendError
from fedcore.rules import Krum, Mean, Median, MultiKrum, NearestNeighborMixing, NormClipping, TrimmedMean
from tests.delta_cohorts import mixed_cohort


@pytest.fixture
def ran(monkeypatch):
    """(op, backend) of every op on factors that runs."""
    found = set()

    def spy(op, name):
        found.add((op, name))
        return implementation(op, name)

    for module in ("lora_gram", "lora_delta_order", "lora_delta_sum"):
        monkeypatch.setattr(importlib.import_module(f"fedcore.ops.{module}"), "implementation", spy)
    return found


@pytest.mark.parametrize("backend", ["reference", "c"])
@pytest.mark.parametrize(
    ("rule", "op"),
    [
        (Krum(1), "lora_gram"),
        (MultiKrum(1), "lora_gram"),
        (Median(), "lora_delta_median"),
        (TrimmedMean(1), "lora_delta_trimmed_mean"),
        (NearestNeighborMixing(1).then(Median()), "lora_delta_sum"),
    ],
    ids=str,
)
def test_an_argument_reaches_every_op_and_beats_the_environment(rule, op, backend, ran, monkeypatch):
    monkeypatch.setenv("FEDCORE_BACKEND", "triton")
    aggregate(mixed_cohort(1, head=False), rule, backend=backend)
    assert (op, backend) in ran
    assert {name for _, name in ran} == {backend}


def test_backends_decide_alike(ran):
    updates = mixed_cohort(2)
    found = {aggregate(updates, MultiKrum(1), backend=name).update.digest() for name in ("reference", "c")}
    assert len(found) == 1


def test_triton_without_a_gpu_is_refused_in_a_selecting_rule(tmp_path):
    """As FEDCORE_BACKEND is; the interpreter, under which tests run, is left out."""
    for update in mixed_cohort(3, n=5, head=False):
        update.to_peft(tmp_path / update.client_id)
    given = [str(tmp_path / f"c{i}") for i in range(5)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fedcore.cli", "aggregate", *given, "-o", str(tmp_path / "out")]
    command += ["--rule", "krum", "--f", "1", "--backend", "triton"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "triton" in done.stderr.lower()
    assert "lora_gram" in done.stderr or "lora_blocks" in done.stderr
    assert "module" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rule", [Mean(), NormClipping(3.0)], ids=str)
def test_triton_is_refused_where_factors_have_no_kernel(rule):
    """Norms and sums of factors are LAPACK's; a dense tensor beside them, or a Gram, is work for a kernel."""
    updates = mixed_cohort(4, head=False)
    with pytest.raises(BackendError, match=r"backend: got 'triton' .*space='delta'.*; leave the backend out"):
        aggregate(updates, rule, backend="triton")
    with use_backend("triton"), pytest.raises(BackendError, match="backend: got 'triton'"):
        aggregate(updates, rule)
    with use_backend("triton"):
        assert np.isfinite(aggregate(updates, rule, backend="c").report["divisor"])
