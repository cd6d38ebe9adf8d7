"""`fedcore report` of files that are valid JSON and not what a run wrote: one line, and nothing on stdout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_learner as fake
import pytest
from cli_runs import refused
from test_federation_secure import CLIENTS, MEAN, Failing, arms
from test_federation_secure import run as run_of
from test_report import line
from test_report_escaping import PRIVATE, SECURE

from fedcore.cli import main
from fedcore.errors import FormatError
from fedcore.federation.folder import RunFolder
from fedcore.federation.intact import check_intact
from fedcore.federation.simulation import run_arms

REMEDY = "the file was damaged, restore it from a copy"
#: of run.json, a line of metrics.jsonl and a round of the ledger: what a report reads, and what it is not
FACTS = {
    "started": "today", "base": 1, "base_name": None, "clients": {}, "population": -1, "held_out": "x",
    "questions": 1.5, "machine": [], "versions": "x",
}  # fmt: skip
LINE = {
    "arm": 1, "round": "1", "loss": "x", "perplexity": [], "accuracy": True, "bytes_up": 1.5, "bytes_down": None,
    "seconds": {"training": "x"},
}  # fmt: skip
ENTRY = {
    "arm": [], "round": None, "inputs": ["x"], "rule": 1, "parameters": "x", "coefficients": [1.0], "divisor": 0,
    "poisoned": "x", "change_norms": {"client-0": "x"}, "output": 5, "excluded": ["x"], "not_counted": 1, "space": 2,
}  # fmt: skip
#: without these an entry is one of another kind
MAY_LACK = ("coefficients", "change_norms", "output", "excluded", "not_counted", "space")
MASKS = {**SECURE, "neighbours": [4]}
RELEASE = {**PRIVATE, "charge": 1, "error_of_delta": {"a and b": 0.5, "b": 0.1}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    return run_arms(fake.config(), fake.texts(), fake.FakeLearner(), path, resume=False).path


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def edit(path: Path, index: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write a log again with one of its lines changed."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    change(lines[index])
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))


def one_line(capsys, run: Path) -> str:
    """What the report is refused with."""
    (said,) = refused(capsys, "report", run, "--json").splitlines()
    assert said.endswith(REMEDY)
    return said.removesuffix(f"; {REMEDY}").removeprefix(f"fedcore: error: {run}/")


@pytest.mark.parametrize("key", FACTS)
def test_facts_that_are_missing_or_of_another_type_are_named(run, capsys, key):
    path = run / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {key: FACTS[key]}))
    assert one_line(capsys, run).startswith(f"run.json: '{key}' is {FACTS[key]!r}, expected ")
    del facts[key]
    path.write_text(json.dumps(facts))
    assert one_line(capsys, run) == f"run.json: '{key}' is missing"


@pytest.mark.parametrize(
    ("log", "key", "bad"),
    [*(("metrics", *pair) for pair in LINE.items()), *(("ledger", *pair) for pair in ENTRY.items())],
)
def test_keys_of_a_line_that_are_missing_or_of_another_type_are_named(run, capsys, log, key, bad):
    path = run / f"{log}.jsonl"
    edit(path, 2, lambda entry: entry.update({key: bad}))
    assert one_line(capsys, run).startswith(f"{log}.jsonl:3: '{key}")
    if log == "metrics" or key not in MAY_LACK:
        edit(path, 2, lambda entry: entry.pop(key))
        assert one_line(capsys, run) == f"{log}.jsonl:3: '{key}' is missing"


def test_what_runs_write_is_whole_also_of_rounds_without_a_divisor_or_a_sum(tmp_path):
    rules = {name: f'rule = "{name}"\nspace = "parameters"\n' for name in ("median", "mean", "geometric_median")}
    clear = arms(**rules, **{name: f'method = "{name}"\n' for name in ("hetlora", "fedex_lora", "ffa_lora")})
    nearly_all = Failing({f"client-{i}" for i in range(1, CLIENTS)})
    for name, top, body, learner in (("clear", "", clear, None), ("void", "secure = true\n", arms(a=MEAN), nearly_all)):
        _, folder = run_of(tmp_path / name, body, learner=learner, top=top)
        assert check_intact(folder) == []
        assert main(["report", str(folder.path)]) == 0


@pytest.mark.parametrize("log", ["metrics", "ledger"])
def test_an_empty_object_is_no_line(run, capsys, log):
    path = run / f"{log}.jsonl"
    count = len(path.read_text().splitlines())
    with path.open("a") as file:
        file.write("{}\n")
    assert one_line(capsys, run) == f"{log}.jsonl:{count + 1}: 'arm' is missing"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": float("nan")}, "'loss' is nan, expected a finite number"),
        ({"seconds": {"training": "x"}}, "'seconds.training' is 'x', expected a valid number"),
        (
            {"round": 10**30},
            "'round' is 1000000000000000000000000000000, expected a number less than or equal to 1000000",
        ),
    ],
)
def test_what_json_holds_and_no_report_can_show_is_refused(run, capsys, change, said):
    edit(run / "metrics.jsonl", 2, lambda entry: entry.update(change))
    assert one_line(capsys, run) == f"metrics.jsonl:3: {said}"


@pytest.mark.parametrize("facts", [{"privacy": RELEASE}, {"secure": MASKS}, {"secure": {"void": "no sum"}}])
def test_facts_of_noise_and_masks_are_asked_for_where_the_report_reads_them(run, facts):
    path = run / "ledger.jsonl"
    edit(path, 2, lambda entry: entry.update(facts))
    assert check_intact(RunFolder(run)) == []
    [(place, known)] = facts.items()
    bad = {key: {"x": {}} for key in known if key not in ("mode", "dropout")}
    for key, value in bad.items():
        edit(path, 2, lambda entry, key=key, value=value: entry.update({place: known | {key: value}}))
        with pytest.raises(FormatError, match=rf"/ledger\.jsonl:3: '{place}\.{key}.*' is "):
            check_intact(RunFolder(run))


def test_lists_of_masks_that_do_not_fit_each_other_are_refused(run):
    edit(run / "ledger.jsonl", 2, lambda entry: entry.update(secure=MASKS | {"corrupt": [1, 1]}))
    with pytest.raises(FormatError, match=r"ledger\.jsonl:3: 'secure' is .*, expected clients, corrupt, .* of group;"):
        check_intact(RunFolder(run))


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("metrics", "metrics.jsonl:16: 'base' round 0 stands in line 1 already"),
        ("ledger", "ledger.jsonl:10: 'mean' round 1 stands in line 1 already"),
    ],
)
def test_a_round_that_stands_twice_is_refused(run, capsys, log, said):
    path = run / f"{log}.jsonl"
    path.write_text(path.read_text() * 2)
    assert one_line(capsys, run) == said


def test_a_client_that_trained_alone_twice_is_named(run, capsys):
    edit(run / "metrics.jsonl", 2, lambda entry: entry.update(client="client-0"))
    assert one_line(capsys, run).startswith("metrics.jsonl:3: 'local-only' round 3 of 'client-0' stands in line 2")


def test_a_round_with_metrics_is_in_the_ledger(run, capsys):
    path = run / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert one_line(capsys, run) == "ledger.jsonl: has no line for 'krum' round 3, as line 15 of metrics.jsonl has"


def test_a_round_in_the_ledger_need_not_have_metrics_yet(run):
    opened = RunFolder(run)
    # of a run that goes on meanwhile, the ledger is read on before the two are compared
    writing = RunFolder(run)
    writing.ledger.append(writing.ledger[-1] | {"round": 4})
    assert check_intact(opened) == []
    writing.metrics.append(line("krum", 4, 4.0))
    assert check_intact(RunFolder(run)) == []
    opened.metrics.read_on()
    assert check_intact(opened) == []


def test_a_torn_last_line_is_told_and_the_report_is_made(run, capsys):
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert main(["report", str(run), "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == (
        f"fedcore: note: {path}: its last line was torn and is left out; unless the run is going on, resume it or "
        "restore the file from a copy\n"
    )
    assert len(json.loads(shown.out)["table"]) == 5


def test_keys_that_no_report_reads_may_hold_anything(run, capsys):
    for name in ("metrics", "ledger"):
        edit(run / f"{name}.jsonl", 2, lambda entry: entry.update(law=[], more={"x": None}))
    assert main(["report", str(run)]) == 0
    assert "note" not in capsys.readouterr().err


def test_a_line_of_nothing_keeps_nobody_from_opening_a_private_run(run):
    (run / "ledger.jsonl").write_text("{}\n")
    assert RunFolder(run).stopped("mean") is None
