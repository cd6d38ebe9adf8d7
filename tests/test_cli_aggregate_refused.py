"""`fedcore aggregate`: every bad input one line, a non-zero exit and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_adapters import B, adapter, five_adapters, poison, refused, run, shift_of
from safetensors.numpy import save_file

from fedcore.errors import WorkSpaceError
from fedcore.updates import Update


@pytest.fixture
def five(tmp_path: Path) -> list[str]:
    return five_adapters(tmp_path)


def test_numbers_that_the_rule_ignores_are_refused(five, tmp_path, capsys):
    options = ("-o", tmp_path / "out", "--rule", "krum", "--f", 1)
    line = refused(capsys, tmp_path, *five, *options, "--weights=-1,0,inf,nan,1")
    assert line.endswith("--weights: got numbers with --rule krum, which ignores them; leave --weights out")
    assert run(*five, *options, "--weights", "equal") == 0


def truncate(path: str) -> None:
    file = Path(path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def lose_weights(path: str) -> None:
    (Path(path) / "adapter_model.safetensors").unlink()


def lose_config(path: str) -> None:
    (Path(path) / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "a1"),
        (lose_weights, "adapter_model.safetensors"),
        (lose_config, "adapter_config.json"),
        (poison, "a1"),
    ],
)
def test_a_damaged_adapter_is_named(five, tmp_path, capsys, damage, said):
    damage(five[1])
    assert said in refused(capsys, tmp_path, *five, "-o", tmp_path / "out")


def test_adapters_that_do_not_fit_together(five, tmp_path, capsys):
    other = adapter(tmp_path, "other-base", base="another")
    assert "another" in refused(capsys, tmp_path, five[0], other, "-o", tmp_path / "out")
    ranks = adapter(tmp_path, "rank-3", rank=3)
    assert "rank" in refused(capsys, tmp_path, five[0], ranks, "-o", tmp_path / "out", "--space", "parameters")


def test_one_directory_given_twice_by_any_path(five, tmp_path, capsys):
    assert f"{five[0]} is given twice" in refused(capsys, tmp_path, *five[:2], five[0], "-o", tmp_path / "out")
    (tmp_path / "link").symlink_to(five[0])
    for other in (tmp_path / "link", tmp_path / "a1" / ".." / "a0"):
        line = refused(capsys, tmp_path, five[0], other, "-o", tmp_path / "out")
        assert f"{five[0]} is given twice ({five[0]} and {other} are one directory)" in line


def without_count(path: str, base: str = "the-base") -> str:
    """As PEFT itself writes it: no metadata of ours."""
    folder = Path(path)
    update = Update.from_peft(folder)
    save_file({name: np.array(tensor) for name, tensor in update.tensors.items()}, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return path


def test_counted_and_uncounted_adapters_are_not_mixed_by_counts(five, tmp_path, capsys):
    without_count(five[1])
    line = refused(capsys, tmp_path, *five[:4], "-o", tmp_path / "out")
    assert f"{five[1]} does not say on how many examples it was trained, {five[0]} says 1" in line
    assert line.endswith("or --weights equal")
    assert run(*five[:4], "-o", tmp_path / "equal", "--weights", "equal") == 0
    assert shift_of(tmp_path / "equal") == pytest.approx(0.015, rel=1e-4)
    assert run(*five, "-o", tmp_path / "krum", "--rule", "krum", "--f", 1) == 0
    assert run(*[without_count(path) for path in five[:4]], "-o", tmp_path / "none") == 0


def test_a_digest_and_a_peft_name_of_one_base_go_together(tmp_path, capsys):
    ours, twin, theirs = (adapter(tmp_path, name, base="tiny") for name in ("ours", "twin", "theirs"))
    for path, digest in ((ours, "a" * 64), (twin, "b" * 64)):
        update = Update.from_peft(path)
        again = Update.from_tensors(
            update.tensors, scaling=update.scaling, base=digest, adapter_config=update.adapter_config
        )
        shutil.rmtree(path)
        again.to_peft(path)
    assert run(ours, without_count(theirs, "/models/tiny"), "-o", tmp_path / "o", "--weights", "equal") == 0
    capsys.readouterr()
    assert "b" * 64 in refused(capsys, tmp_path, ours, twin, "-o", tmp_path / "out")
    without_count(theirs, "/models/large")
    line = refused(capsys, tmp_path, ours, theirs, "-o", tmp_path / "out", "--weights", "equal")
    assert "'/models/large', expected 'tiny'" in line


def test_a_reference_that_is_not_looked_at_or_holds_nan(five, tmp_path, capsys):
    assert run(*five[:2], "-o", tmp_path / "out", "--reference", five[2]) == 0
    assert "note: --reference changes nothing: Mean() does not look at it" in capsys.readouterr().err
    poison(five[4])
    options = ("--rule", "norm_clipping", "--set", "max_norm=1", "--reference", five[4])
    line = refused(capsys, tmp_path, *five[:2], "-o", tmp_path / "clipped", *options)
    assert f"--reference {five[4]}: tensor '{B}' holds NaN or Inf at element 11" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rule", "krumm"], "did you mean 'krum'?"),
        (["--rule", "krum"], "krum: --f is missing"),
        (["--rule", "mean", "--f", 1], "mean: --f is not known; it takes none"),
        (["--rule", "krum", "--f", 1, "--set", "m=2"], "krum: --set m is not known; it takes --f, --set neighbors"),
        (["--rule", "norm_clipping"], "norm_clipping: --set max_norm is missing"),
        (["--set", "f"], "--set: got 'f', expected NAME=VALUE such as m=3"),
        (["--rule", "krum", "--set", "f=0", "--f", 1], "--set f: --f gives it too, expected one value"),
        (["--rule", "multi_krum", "--f", 1, "--set", "m=1", "--set", "m=5"], "--set: m is given twice, expected one"),
        (["--before", "bucketing:s=2,s=4"], "--before bucketing: s is given twice, expected one value"),
        (["--rule", "krum", "--f", 1, "--before", "mean"], "Mean(): gives one row"),
        (["--before", "norm_clippin:max_norm=1"], "did you mean 'norm_clipping'?"),
        (
            ["--before", "norm_clipping"],
            "norm_clipping: --before norm_clipping:max_norm=… is missing; give a value for it",
        ),
        (
            ["--before", "arc:g=1"],
            "arc: --before arc:g=… is not known; it takes --before arc:f=…, --before arc:weighted=…",
        ),
        (["--before", "arc:f=x"], "arc: --before arc:f=…: got 'x', expected a whole number"),
        (["--before", "norm_clipping:1"], "--before norm_clipping: got '1', expected NAME=VALUE"),
        (["--rule", "krum", "--f", 2], "the largest f for n=5 is 1"),
        (["--rule", "krum", "--f", -1], "f=-1"),
        (["--weights", "1,2"], "--weights: got 2 numbers for 5 directories"),
        (["--weights", "1,2,x,4,5"], "--weights: got '1,2,x,4,5'"),
        (["--weights", "0,0,0,0,0"], "weight"),
        (["--weights", "1,1,-1,1,1"], "a2"),
        (["--weights", "1,1,inf,1,1"], "a2"),
        (["--weights", "1,1,nan,1,1"], "a2"),
        (["--space", "gamma"], "--space"),
        (["--reference", "nowhere"], "nowhere"),
        (["--backend", "cobol"], "cobol"),
    ],
)
def test_a_bad_option_is_named(five, tmp_path, capsys, options, said):
    assert said in refused(capsys, tmp_path, *five, "-o", tmp_path / "out", *options)


def test_no_directory_at_all_and_one_that_is_missing(tmp_path, capsys):
    assert "DIR" in refused(capsys, tmp_path, "-o", tmp_path / "out")
    assert "gone: no such directory" in refused(capsys, tmp_path, tmp_path / "gone", "-o", tmp_path / "out")


def test_an_existing_output_is_refused_first(five, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert "already exists" in refused(capsys, tmp_path, tmp_path / "gone", "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "do"),
    [
        ((), "without --memory; free some, or give it: too little is refused with the least that works"),
        (("--memory", "2GB"), "with --memory 2GB; free some, or give less: too little is refused with the least that"),
        (("--method", "fedit"), "; free some, then do it again"),
    ],
)
def test_memory_that_runs_out_is_one_line(five, tmp_path, capsys, monkeypatch, given, do):
    def failing(*_, **__):
        raise MemoryError("Unable to allocate 117. MiB for an array with shape (30720000,)")

    monkeypatch.setattr("fedcore.updates.Update.to_peft", failing)
    said = refused(capsys, tmp_path, *five, "-o", tmp_path / "out", *given)
    ran_out = "memory ran out (Unable to allocate 117. MiB for an array with shape (30720000,))"
    assert said.startswith(f"fedcore: error: {ran_out}{'' if do.startswith(';') else ' '}{do}")


def test_memory_that_a_kernel_is_short_of_keeps_its_own_line(five, tmp_path, capsys, monkeypatch):
    def failing(*_, **__):
        raise WorkSpaceError("gram: no memory for its work space; use fewer threads or free memory")

    monkeypatch.setattr("fedcore.updates.Update.to_peft", failing)
    said = refused(capsys, tmp_path, *five, "-o", tmp_path / "out")
    assert said == "fedcore: error: gram: no memory for its work space; use fewer threads or free memory"
