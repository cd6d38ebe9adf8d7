"""`fedcore aggregate`: directories in, one out; every bad input one line, a non-zero exit and nothing written."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedcore.cli import main
from fedcore.updates import Update

MODULE = "base_model.model.layer"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


def adapter(
    folder: Path, name: str, shift: float = 0.0, rank: int = 2, base: str = "the-base", examples: int = 1
) -> Path:
    """A PEFT directory whose B is that of all others plus a shift."""
    generator = np.random.default_rng(0)
    tensors = {A: generator.normal(size=(rank, 8)), B: generator.normal(size=(6, rank)) + shift}
    update = Update.from_tensors(
        {key: value.astype(np.float32) for key, value in tensors.items()},
        scaling={MODULE: 2.0},
        base=base,
        num_examples=examples,
        client_id=name,
        adapter_config={
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": ["layer"],
            "base_model_name_or_path": base,
        },
    )
    update.to_peft(folder / name)
    return folder / name


@pytest.fixture
def five(tmp_path: Path) -> list[str]:
    """Four that agree, with 1 to 4 examples, and one far away."""
    shifts = [0.0, 0.01, 0.02, 0.03, 50.0]
    return [str(adapter(tmp_path, f"a{i}", shift, examples=i + 1)) for i, shift in enumerate(shifts)]


def run(*arguments: object) -> int:
    return main(["aggregate", *map(str, arguments)])


def shift_of(directory: Path) -> float:
    """How far the result's Δ is from the first adapter's, in units of B's shift."""
    update = Update.from_peft(directory)
    delta = update.tensors[B].astype(float) @ update.tensors[A]
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 8)), generator.normal(size=(6, 2))
    return float(np.linalg.norm(delta - b @ a) / np.linalg.norm(np.ones((6, 2)) @ a))


def test_mean_weighs_by_examples_unless_told(five, tmp_path, capsys):
    assert run(*five[:4], "-o", tmp_path / "counts") == 0
    assert shift_of(tmp_path / "counts") == pytest.approx((0.01 * 2 + 0.02 * 3 + 0.03 * 4) / 10, rel=1e-4)
    assert run(*five[:4], "-o", tmp_path / "even", "--weights", "1,1,1,1") == 0
    assert shift_of(tmp_path / "even") == pytest.approx(0.015, rel=1e-4)


def test_weights_follow_the_order_of_the_directories(five, tmp_path):
    assert run(*reversed(five[:3]), "-o", tmp_path / "out", "--weights", "7,2,1") == 0
    assert shift_of(tmp_path / "out") == pytest.approx((0.02 * 7 + 0.01 * 2) / 10, rel=1e-4)


def test_numbers_that_the_rule_ignores_are_refused(five, tmp_path, capsys):
    options = ("-o", tmp_path / "out", "--rule", "krum", "--f", 1)
    line = refused(capsys, tmp_path, *five, *options, "--weights=-1,0,inf,nan,1")
    assert line.endswith("--weights: got numbers with --rule krum, which ignores them; leave --weights out")
    assert run(*five, *options, "--weights", "equal") == 0


def test_krum_says_who_counted_and_json_is_one_object(five, tmp_path, capsys):
    assert run(*five, "-o", tmp_path / "out", "--rule", "krum", "--f", 1, "--json") == 0
    shown = capsys.readouterr()
    said = json.loads(shown.out)
    assert sum(value != 0 for value in said["coefficients"].values()) == 1
    assert said["coefficients"][five[4]] == 0
    assert said["digest"] == Update.from_peft(tmp_path / "out").digest()
    assert shift_of(tmp_path / "out") < 0.04


def test_the_table_names_every_adapter(five, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(*five, "-o", tmp_path / "out", "--rule", "multi_krum", "--f", 1, "--set", "m=2") == 0
    shown = capsys.readouterr().out
    assert all(path in shown for path in five)
    assert shown.count("not selected") == 3


@pytest.mark.parametrize(("rule", "left_out"), [("median", 0), ("bulyan", 2)])
def test_the_table_of_a_rule_without_coefficients_names_every_adapter(
    five, tmp_path, capsys, monkeypatch, rule, left_out
):
    monkeypatch.setenv("COLUMNS", "300")
    more = [str(adapter(tmp_path, f"b{i}", 0.001 * i)) for i in range(3)]
    options = ["--weights", "equal", "--space", "parameters", *(["--f", "1"] if rule == "bulyan" else [])]
    assert run(*five, *more, "-o", tmp_path / "out", "--rule", rule, *options) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*five, *more])
    assert "coefficient" not in shown
    assert shown.count("not chosen") == left_out
    assert shown.count(" counts") == 8 - left_out


@pytest.mark.parametrize("space", ["delta", "parameters"])
def test_norm_clipping_takes_its_norm_and_a_reference(five, tmp_path, space):
    options = ("--rule", "norm_clipping", "--set", "max_norm=0.05", "--space", space, "--reference", five[0])
    assert run(*five, "-o", tmp_path / "out", *options) == 0
    assert shift_of(tmp_path / "out") < 0.1
    assert run(*five, "-o", tmp_path / "wild", "--space", space) == 0
    assert shift_of(tmp_path / "wild") > 10


def refused(capsys, folder: Path, *arguments: object) -> str:
    """The one line of a refusal; nothing was written."""
    before = sorted(folder.rglob("*"))
    code = run(*arguments)
    shown = capsys.readouterr()
    assert code != 0
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("fedcore: error: ")
    assert sorted(folder.rglob("*")) == before
    return lines[0]


def truncate(path: str) -> None:
    file = Path(path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def lose_weights(path: str) -> None:
    (Path(path) / "adapter_model.safetensors").unlink()


def lose_config(path: str) -> None:
    (Path(path) / "adapter_config.json").unlink()


def poison(path: str) -> None:
    """NaN in the last value of the file."""
    file = Path(path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + np.float32(np.nan).tobytes())


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


def test_a_poisoned_adapter_can_be_left_out(five, tmp_path, capsys):
    poison(five[1])
    assert run(*five, "-o", tmp_path / "out", "--on-nonfinite", "exclude", "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["excluded"]) == [five[1]]


def test_the_table_says_in_full_what_an_excluded_adapter_holds(five, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.chdir(tmp_path)
    poison(five[1])
    long = shutil.copytree(five[1], "a-name-that-is-longer-than-its-column-" * 2)
    assert run("a0", "a1", "a2", long, "-o", "out", "--on-nonfinite", "exclude") == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    # the cells of a column one after the other
    text = "".join(line[-30:].strip() for line in shown.splitlines()).replace(" ", "")
    assert f"tensor'{B}'holdsNaNorInfatelement11" in text
    assert "exclude" not in text


def test_adapters_that_do_not_fit_together(five, tmp_path, capsys):
    other = adapter(tmp_path, "other-base", base="another")
    assert "another" in refused(capsys, tmp_path, five[0], other, "-o", tmp_path / "out")
    ranks = adapter(tmp_path, "rank-3", rank=3)
    assert "rank" in refused(capsys, tmp_path, five[0], ranks, "-o", tmp_path / "out", "--space", "parameters")


@pytest.mark.parametrize("options", [(), ("--method", "fedit")])
def test_a_path_is_shown_as_it_is(five, tmp_path, capsys, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(five[1], "[bold]x[")
    assert run("a0", "[bold]x[", "-o", "[red]:smile:", *options) == 0
    shown = capsys.readouterr().out
    assert "[bold]x[ " in shown
    assert "[red]:smile:  " in shown


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


def test_the_table_tells_what_truncation_lost(five, tmp_path, capsys):
    other = np.random.default_rng(9)
    Update.from_tensors(
        {A: other.normal(size=(2, 8)).astype(np.float32), B: other.normal(size=(6, 2)).astype(np.float32)},
        scaling={MODULE: 2.0},
        base="the-base",
    ).to_peft(tmp_path / "other")
    assert run(five[0], tmp_path / "other", "-o", tmp_path / "out", "--json") == 0
    lost = json.loads(capsys.readouterr().out)["report"]["modules"][MODULE]["residual"]
    assert lost > 0.01
    assert run(five[0], tmp_path / "other", "-o", tmp_path / "again") == 0
    assert f"at most {lost:.2g} of a module's norm is lost ({MODULE})" in capsys.readouterr().out


def test_a_reference_that_is_not_looked_at_or_holds_nan(five, tmp_path, capsys):
    assert run(*five[:2], "-o", tmp_path / "out", "--reference", five[2]) == 0
    assert "note: --reference changes nothing: Mean() does not look at it" in capsys.readouterr().err
    poison(five[4])
    options = ("--rule", "norm_clipping", "--set", "max_norm=1", "--reference", five[4])
    line = refused(capsys, tmp_path, *five[:2], "-o", tmp_path / "clipped", *options)
    assert f"--reference {five[4]}: tensor '{B}' holds NaN or Inf at element 11" in line


def test_settings_reach_the_rule_as_numbers_or_text(five, tmp_path, capsys):
    options = ("--rule", "multi_krum", "--set", "f=1", "--set", "m=2", "--set", "neighbors=byzfl", "--json")
    assert run(*five, "-o", tmp_path / "out", *options) == 0
    assert json.loads(capsys.readouterr().out)["rule"] == "MultiKrum(f=1, m=2, neighbors='byzfl', weighted=False)"

    for said, expected in (("no", False), ("False", False), ("yes", True), ("true", True)):
        options = ("--rule", "multi_krum", "--f", 1, "--set", f"weighted={said}", "--json")
        assert run(*five, "-o", tmp_path / said, *options) == 0
        assert f"weighted={expected})" in json.loads(capsys.readouterr().out)["rule"]


def test_pre_aggregations_come_in_the_order_that_rows_pass_them(five, tmp_path, capsys):
    stages = ("--before", "norm_clipping:max_norm=9.5", "--before", "norm_clipping:max_norm=1")
    assert run(*five, "-o", tmp_path / "out", "--rule", "krum", "--f", 1, *stages, "--json") == 0
    said = json.loads(capsys.readouterr().out)["rule"]
    assert said == "NormClipping(max_norm=9.5).then(NormClipping(max_norm=1.0).then(Krum(f=1, neighbors='paper')))"


def test_a_trusted_adapter_and_a_centre_reach_the_rules_that_ask(five, tmp_path, capsys):
    start = adapter(tmp_path, "start", -1.0)
    trust = ("--rule", "fltrust", "--reference", start, "--server", five[0])
    assert run(*five, "-o", tmp_path / "trusted", *trust) == 0
    assert shift_of(tmp_path / "trusted") < 0.1
    capsys.readouterr()
    line = refused(capsys, tmp_path, *five, "-o", tmp_path / "none", "--rule", "fltrust", "--reference", start)
    assert "server" in line
    clip = ("--rule", "centered_clipping", "--set", "radius=0.001")
    assert run(*five, "-o", tmp_path / "near", *clip, "--center", five[4]) == 0
    assert shift_of(tmp_path / "near") == pytest.approx(50, rel=1e-3)
    capsys.readouterr()
    assert run(*five[:2], "-o", tmp_path / "mean", "--server", five[2]) == 0
    assert "note: --server changes nothing: Mean() does not look at it" in capsys.readouterr().err
    poison(five[4])
    line = refused(capsys, tmp_path, *five[:4], "-o", tmp_path / "bad", *trust[:4], "--server", five[4])
    assert f"--server {five[4]}: tensor '{B}' holds NaN" in line


def test_mixed_ranks_are_fine_in_delta_space(five, tmp_path):
    assert run(five[0], adapter(tmp_path, "rank-3", rank=3), "-o", tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rule", "krumm"], "did you mean 'krum'?"),
        (["--rule", "krum"], "krum: --f is missing"),
        (["--rule", "mean", "--f", 1], "mean: --f is not known; it takes none"),
        (["--rule", "krum", "--f", 1, "--set", "m=2"], "krum: --set m is not known; it takes --f, --set neighbors"),
        (["--rule", "norm_clipping"], "norm_clipping: --set max_norm is missing"),
        (["--set", "f"], "--set: got 'f', expected NAME=VALUE such as m=3"),
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


class FullDisk(io.StringIO):
    """A stdout that is a file on a full disk, or a pipe that nobody reads."""

    def __init__(self, number: int = errno.ENOSPC):
        super().__init__()
        self.number = number

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("options", [(), ("--json",), ("--method", "fedit")])
def test_a_result_that_cannot_be_shown_is_there_and_said_to_be(five, tmp_path, capsys, monkeypatch, options):
    monkeypatch.setattr(sys, "stdout", FullDisk())
    assert run(*five[:2], "-o", tmp_path / "out", *options) == 1
    said = "fedcore: error: standard output cannot be written (No space left on device); "
    assert capsys.readouterr().err == said + f"{tmp_path}/out is complete\n"
    assert Update.from_peft(tmp_path / "out").digest()


def test_a_reader_that_goes_away_is_told_nothing(five, tmp_path, monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(errors, "close", lambda: None)
    monkeypatch.setattr(sys, "stdout", FullDisk(errno.EPIPE))
    with pytest.raises(SystemExit, match="1"):
        run(*five[:2], "-o", tmp_path / "json", "--json")
    # rich turns its output away from a broken pipe, so here a real one is needed
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit, match="1"):
            run(*five[:2], "-o", tmp_path / "out")
    assert errors.getvalue() == ""


def test_a_closed_stdout_is_none_that_anybody_reads(five, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert run(*five[:2], "-o", tmp_path / "out", "--json") == 0
    assert capsys.readouterr().err == ""


def test_an_existing_output_is_refused_first(five, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert "already exists" in refused(capsys, tmp_path, tmp_path / "gone", "-o", tmp_path / "out")


def test_a_memory_budget_changes_no_bit_and_says_the_least(five, tmp_path, capsys):
    assert run(*five, "-o", tmp_path / "free", "--rule", "krum", "--f", "1", "--space", "parameters") == 0
    bounded = ("--rule", "krum", "--f", "1", "--space", "parameters", "--memory")
    assert run(*five, "-o", tmp_path / "bounded", *bounded, "80MB") == 0
    free, found = (Update.from_peft(tmp_path / name).digest() for name in ("free", "bounded"))
    assert found == free
    capsys.readouterr()
    for space in ("parameters", "delta"):
        said = refused(capsys, tmp_path, *five, "-o", tmp_path / "out", "--memory", "9MB", "--space", space)
        assert "memory: got 9 MB, expected at least " in said
    assert "memory: got 'much'" in refused(capsys, tmp_path, *five, "-o", tmp_path / "out", "--memory", "much")


def test_long_work_shows_its_progress(five, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedcore.cli.terminal.LATE", 0.0)
    assert run(*five, "-o", tmp_path / "out", "--rule", "krum", "--f", "1", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["report"]["selected"]
    assert [line for line in said.err.splitlines() if line in ("factors: done", "gram: done", "combination: done")]
