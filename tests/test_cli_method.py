"""`fedcore aggregate --method` and `fedcore plan`: directories in and out, refused combinations in one line."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import safetensors.numpy

from fedcore.cli import main
from fedcore.lora import METHODS, FLoRA
from fedcore.lora.combination import refusals
from fedcore.updates import Update
from fedcore.updates.atomic import refused
from tests.method_cohorts import SHAPES, mean_delta, mixed
from tests.oracles import delta as dense


@pytest.fixture
def directories(tmp_path):
    for update in mixed():
        update.to_peft(tmp_path / update.client_id)
    return [tmp_path / update.client_id for update in mixed()]


def run(capsys, *arguments):
    code = main(list(map(str, arguments)))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_method_writes_the_adapter_what_lies_beside_it_and_each_start(directories, tmp_path, capsys):
    out, starts = tmp_path / "next", tmp_path / "starts"
    code, shown, _ = run(
        capsys, "aggregate", *directories, "-o", out, "--method", "flora", "--starts", starts, "--json"
    )
    assert code == 0
    said = json.loads(shown)
    assert said["side"] == f"{out}-side"
    side = Update.from_peft(said["side"])
    for module in SHAPES:
        np.testing.assert_allclose(dense.dense(side, module), mean_delta(mixed(), module), atol=1e-4)
    for update in mixed():
        start = Update.from_peft(starts / update.client_id)
        assert {module: start.scaling[module] for module in update.modules} == pytest.approx(update.scaling)
        assert start.modules.keys() == SHAPES.keys()
    assert said["report"]["method"] == repr(FLoRA())
    again = tmp_path / "after"
    code, shown, _ = run(
        capsys, "aggregate", *directories, "-o", again, "--method", "flora", "--side", side_of(out), "--round", 2
    )
    assert code == 0
    assert "without the side adapter" in shown
    twice = Update.from_peft(f"{again}-side")
    np.testing.assert_allclose(dense.dense(twice, "up"), 2 * mean_delta(mixed(), "up"), atol=1e-4)


def test_a_method_shows_what_each_adapter_counts_and_sends(directories, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [directory.name for directory in directories]
    code, shown, _ = run(capsys, "aggregate", *names, "-o", "out", "--method", "flexlora", "--weights", "equal")
    assert code == 0
    assert all(head in shown for head in ("adapter", "share", "bytes up", "bytes down"))
    rows = {words[0]: words[1] for line in shown.splitlines() if len(words := line.split()) > 1}
    assert {rows[name] for name in names} == {f"{1 / len(names):.4f}"}
    # those of hetlora count by their norms, whatever is given: no share is shown
    code, shown, _ = run(capsys, "aggregate", *names, "-o", "next", "--method", "hetlora", "--weights", "equal")
    assert code == 0
    assert "adapter" in shown
    assert "share" not in shown


def side_of(output):
    return f"{output}-side"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "flexlora", "--rule", "krum"), ("--rule", "krum", "--method")),
        (("--method", "flexlora", "--before", "norm_clipping:max_norm=1"), ("--before",)),
        (("--method", "flexlora", "--space", "parameters"), ("--space",)),
        (("--method", "flexlora", "--memory", "1GB"), ("--memory",)),
        (("--method", "fedit"), ("fedit takes no mixed", "rank")),
        (("--method", "flexlor"), ("'flexlor'", "flexlora")),
        (("--method", "flexlora", "--set", "f=1"), ("flexlora", "'f'", "rank, error_feedback")),
        (("--method", "frlora"), ("reference: missing",)),
        (("--side", "nowhere"), ("--side", "without --method")),
        (("--round", "3"), ("--round: got 3 without --method",)),
        (("--method", "fedit", "--on-nonfinite", "exclude"), ("--on-nonfinite: got exclude with --method",)),
        (("--method", "flexlora", "--threads", "2"), ("--threads", "--method")),
        (("--method", "flexlora", "--set", "rank=true"), ("flexlora", "--set rank", "got true", "whole number")),
        (("--method", "flexlora", "--set", "error_feedback=so"), ("--set error_feedback", "'so'", "true or false")),
        (("--method", "hetlora", "--weights", "1,99,1,1,1"), ("--weights", "hetlora", "ignores")),
        (("--rule", "krum", "--set", "f=true"), ("krum", "--f", "got true", "whole number")),
    ],
)
def test_what_does_not_go_together_is_one_line_and_writes_nothing(directories, tmp_path, capsys, options, words):
    code, _, error = run(capsys, "aggregate", *directories, "-o", tmp_path / "out", *options)
    assert code == 1
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_adapters_that_say_their_examples_beside_one_that_does_not_are_refused(directories, tmp_path, capsys):
    silent = directories[0] / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(silent)
    safetensors.numpy.save_file(tensors, silent, metadata={"format": "pt"})
    said = ("aggregate", *directories, "-o", tmp_path / "out", "--method", "flexlora")
    code, _, error = run(capsys, *said)
    assert code == 1
    assert "--weights counts" in error
    assert str(directories[0]) in error
    assert not (tmp_path / "out").exists()
    # weights do not move hetlora, so that it needs no counts
    assert run(capsys, *said[:-1], "hetlora", "--json")[0] == 0
    assert run(capsys, *said[:-1], "hetlora", "-o", tmp_path / "alike", "--weights", "equal")[0] == 0
    assert run(capsys, *said, "-o", tmp_path / "equal", "--weights", "equal")[0] == 0


def test_starts_of_one_name_are_refused_before_anything_is_written(tmp_path, capsys):
    sites = [tmp_path / update.client_id / "adapter" for update in mixed()]
    for site, update in zip(sites, mixed(), strict=True):
        update.to_peft(site)
    code, _, error = run(
        capsys, "aggregate", *sites, "-o", tmp_path / "out", "--method", "flora", "--starts", tmp_path / "starts"
    )
    assert code == 1
    assert error.count("\n") == 1
    assert all(word in error for word in ("--starts", str(sites[0]), str(sites[1]), "'adapter'"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("starts", ["out", "out/starts", "out-side", "out-side/x", ".", "link/starts"])
def test_starts_in_or_around_what_else_is_written_are_refused(directories, tmp_path, capsys, starts):
    (tmp_path / "link").symlink_to(tmp_path / "new" / "out-side")
    place = tmp_path / "new" / starts if starts[0] != "l" else tmp_path / starts
    said = ("aggregate", *directories, "-o", tmp_path / "new" / "out", "--method", "flora", "--starts", place)
    code, _, error = run(capsys, *said)
    assert code == 1
    assert error.count("\n") == 1
    assert "--starts" in error
    assert "apart from" in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("failing", ["starts", "side", "last start", "rename"])
def test_what_cannot_be_written_whole_leaves_nothing_and_can_be_tried_again(
    directories, tmp_path, capsys, monkeypatch, failing
):
    place = tmp_path / "new"
    said = ["aggregate", *directories, "-o", place / "out", "--method", "flora", "--starts", place / "starts"]
    with monkeypatch.context() as patch:
        if failing == "starts":
            (tmp_path / "file").write_text("")
            said[-1] = tmp_path / "file" / "starts"
        elif failing == "rename":
            rename, final = os.rename, place / "out"
            patch.setattr(os, "rename", lambda one, other: rename(one, place / "no" / "x" if other == final else other))
        else:
            whose, write = ("side", "c9")[failing != "side"], Update.to_peft

            def full(update, folder):
                if update.client_id.endswith(whose):
                    raise refused(folder, OSError(errno.ENOSPC, "No space left on device")) from OSError(28, "no space")
                write(update, folder)

            patch.setattr(Update, "to_peft", full)
        code, _, error = run(capsys, *said)
    assert code == 1
    assert error.count("\n") == 1
    assert ".part" not in error
    assert "cannot be written" in error
    assert not list(place.glob("*")) + list(place.glob(".*")), list(place.iterdir())
    said[-1] = place / "starts"
    assert run(capsys, *said)[0] == 0
    assert {path.name for path in place.iterdir()} == {"out", "out-side", "starts"}


def test_plan_says_what_fits_and_why_the_rest_does_not(capsys):
    code, shown, _ = run(capsys, "plan", "--ranks", "4,8", "--masks", "--json")
    assert code == 0
    found = json.loads(shown)["methods"]
    fitting = {name for name, traits in found.items() if not traits["refused"]}
    assert fitting == {"ffa_lora", "randomized_sketch"}
    assert found["rolora"]["trains"] == "b, then a"
    code, _, error = run(capsys, "plan", "--method", "flora", "--masks")
    assert code == 1
    assert "masks hide" in error
    assert run(capsys, "plan", "--method", "fedit")[0] == 0
    assert "at least 1" in run(capsys, "plan", "--ranks", "4,x")[2]


def test_plan_shows_every_name_whole_and_what_lies_beside(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(capsys, "plan")[1]
    lines = {words[0]: line for line in shown.splitlines() if (words := line.split())}
    assert set(METHODS) <= set(lines)
    assert all(len(line) <= 80 for name, line in lines.items() if name in METHODS)
    assert "side" in shown
    assert "reference" in shown
    code, shown, error = run(capsys, "plan", "--method", "frlora")
    assert (code, error) == (0, "")
    for words in (METHODS["frlora"].traits.start, METHODS["frlora"].traits.paper, "side adapter", "started from"):
        assert words in " ".join(shown.split())


def test_plan_says_a_refusal_once_and_in_one_line(capsys):
    options = ("--masks", "--scales", "2,1", "--optimizer", "fedadam", "--rule", "krum")
    code, shown, error = run(capsys, "plan", "--method", "lora_fair", *options)
    assert code == 1
    assert error.count("\n") == 1
    for words in ("takes no mixed", "masks hide", "rule 'krum'", "optimizer 'fedadam'"):
        assert error.count(words) == 1
        assert words not in shown
    found = json.loads(run(capsys, "plan", "--modules-differ", "--json")[1])["methods"]
    assert {name for name, traits in found.items() if not traits["refused"]} == {
        name for name, kind in METHODS.items() if kind.traits.mixed
    }
    # one scale is none that differs
    assert not json.loads(run(capsys, "plan", "--scales", "2,2", "--method", "fedit", "--json")[1])["methods"]["fedit"][
        "refused"
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rule", "nonsense"), "rule: got 'nonsense', expected one of"),
        (("--rule", "krumm"), "did you mean 'krum'?"),
        (("--scales", "2,x"), "--scales: got '2,x', expected numbers"),
        (("--scales", "2,nan"), "--scales: got '2,nan', expected numbers"),
        (("--scales", "0"), "--scales: got '0', expected numbers other than 0"),
        (("--optimizer", "adamw"), "--optimizer: got 'adamw'"),
    ],
)
def test_plan_refuses_what_it_does_not_know(capsys, options, words):
    code, shown, error = run(capsys, "plan", *options)
    assert (code, shown) == (1, "")
    assert words in error
    assert error.count("\n") == 1


def test_a_method_takes_no_rule_and_none_but_that_of_a_frozen_a_a_server_optimizer():
    for kind in METHODS.values():
        assert not refusals(kind())
        assert len(refusals(kind(), rule="krum", optimizer="fedadam")) == 1 + (kind is not METHODS["ffa_lora"])
        assert refusals(kind(), mixed=True, optimizer="fedadam")
        assert refusals(kind(), before=True)
        assert bool(refusals(kind(), mixed=True)) == (not kind.traits.mixed)
        assert bool(refusals(kind(), masks=True)) == (not kind.traits.linear)
