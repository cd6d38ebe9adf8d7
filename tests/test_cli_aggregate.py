"""`fedcore aggregate`: directories in, one out, and what it shows of them."""

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
from cli_adapters import MODULE, A, B, adapter, five_adapters, poison, refused, run, shift_of

from fedcore.updates import Update


@pytest.fixture
def five(tmp_path: Path) -> list[str]:
    return five_adapters(tmp_path)


def test_mean_weighs_by_examples_unless_told(five, tmp_path, capsys):
    assert run(*five[:4], "-o", tmp_path / "counts") == 0
    assert shift_of(tmp_path / "counts") == pytest.approx((0.01 * 2 + 0.02 * 3 + 0.03 * 4) / 10, rel=1e-4)
    assert run(*five[:4], "-o", tmp_path / "even", "--weights", "1,1,1,1") == 0
    assert shift_of(tmp_path / "even") == pytest.approx(0.015, rel=1e-4)


def test_weights_follow_the_order_of_the_directories(five, tmp_path):
    assert run(*reversed(five[:3]), "-o", tmp_path / "out", "--weights", "7,2,1") == 0
    assert shift_of(tmp_path / "out") == pytest.approx((0.02 * 7 + 0.01 * 2) / 10, rel=1e-4)


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


@pytest.mark.parametrize("options", [(), ("--method", "fedit")])
def test_a_path_is_shown_as_it_is(five, tmp_path, capsys, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(five[1], "[bold]x[")
    assert run("a0", "[bold]x[", "-o", "[red]:smile:", *options) == 0
    shown = capsys.readouterr().out
    assert "[bold]x[ " in shown
    assert "[red]:smile:  " in shown


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
