"""The files of a budget: changed, rolled back, lost or opened otherwise."""

from __future__ import annotations

import json
import shutil

import pytest
from private_budgets import KEY, A, B, C, budget

import fedcore as fc
from fedcore.errors import FormatError, PrivacyError
from fedcore.privacy import chain

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")


def edited(path, number, change):
    lines = path.read_bytes().splitlines(keepends=True)
    record = json.loads(lines[number - 1])
    change(record)
    lines[number - 1] = json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(b"".join(lines))


def cut_with_its_head(path):
    """By somebody who can write both files, and saw none of an earlier head."""
    lines = path.read_bytes().splitlines(keepends=True)[:-1]
    path.write_bytes(b"".join(lines))
    mac, head = json.loads(lines[-1])["mac"], path.with_name(path.name + ".head")
    head.write_text(json.dumps(json.loads(head.read_text()) | {"number": len(lines), "mac": mac}))


def line(number, text):
    """Another text in place of a line."""

    def change(path):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[: number - 1], text.encode() + b"\n", *lines[number:]]))

    return change


def head(**changed):
    def change(path):
        side = path.with_name(path.name + ".head")
        side.write_text(json.dumps(json.loads(side.read_text()) | changed))

    return change


def without_both(path):
    for name in (path.name, path.name + ".head"):
        path.with_name(name).unlink()


TAMPERINGS = {
    "file and head deleted, sealed keys left": without_both,
    "a list for a line": line(2, '["x"]'),
    "a number for a line": line(2, "7"),
    "lists in lists for a line": line(2, "[" * 200_000),
    "tables in tables for a line": line(2, '{"a":' * 200_000 + "1" + "}" * 200_000),
    "a MAC that is no ASCII": lambda p: edited(p, 2, lambda r: r.update(mac="é")),
    "a MAC that is no text": lambda p: edited(p, 2, lambda r: r.update(mac=None)),
    "a MAC of half a character": lambda p: edited(p, 2, lambda r: r.update(mac="\ud800")),
    "a head that counts to infinity": head(number=float("inf")),
    "a head whose number is a list": head(number=[]),
    "a seal that is no ASCII": head(seal="é"),
    "a head that is a list": lambda p: p.with_name(p.name + ".head").write_text("[]"),
    "a head of lists in lists": lambda p: p.with_name(p.name + ".head").write_text("[" * 200_000),
    "the last charge cut off, its head to match": cut_with_its_head,
    "a charge made cheaper": lambda p: edited(p, 2, lambda r: r.update(noise_multiplier=(9.0).hex())),
    "a budget made larger": lambda p: edited(p, 1, lambda r: r.update(epsilon=(99.0).hex())),
    "the last charge cut off": lambda p: p.write_bytes(b"".join(p.read_bytes().splitlines(keepends=True)[:-1])),
    "the last charge cut in two": lambda p: p.write_bytes(p.read_bytes()[:-20]),
    "a charge in the middle cut out": lambda p: p.write_bytes(
        b"".join(p.read_bytes().splitlines(keepends=True)[i] for i in (0, 2))
    ),
    "charges in another order": lambda p: p.write_bytes(
        b"".join(p.read_bytes().splitlines(keepends=True)[i] for i in (0, 2, 1))
    ),
    "deleted, its head left": lambda p: p.unlink(),
    "its head deleted": lambda p: p.with_name(p.name + ".head").unlink(),
    "its head damaged": lambda p: p.with_name(p.name + ".head").write_text("{}"),
    "no records at all": lambda p: p.write_bytes(b"hello\n" * 3),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_a_file_that_was_changed_or_rolled_back_is_refused(tmp_path, what):
    run = budget(tmp_path)
    run.reserve(A)
    run.reserve(B)
    TAMPERINGS[what](run.path)
    for again in (lambda: run.reserve(C), lambda: budget(tmp_path), lambda: run.spent):
        with pytest.raises(FormatError, match=r"people\.budget: .*nothing is released"):
            again()


@pytest.mark.parametrize("rolled_back", ["people.budget", "people.budget.head"])
def test_an_earlier_copy_of_the_file_or_its_head_alone_is_refused(tmp_path, rolled_back):
    run = budget(tmp_path)
    run.reserve(A)
    shutil.copy(tmp_path / rolled_back, tmp_path / "copy")
    run.reserve(B)
    run.reserve(C)
    shutil.copy(tmp_path / "copy", tmp_path / rolled_back)
    with pytest.raises(FormatError, match="records where"):
        run.reserve(C)


def test_a_file_put_back_with_its_head_shows_in_the_keys_that_no_record_explains(tmp_path):
    run = budget(tmp_path)
    kept = {name: (tmp_path / name).read_bytes() for name in ("people.budget", "people.budget.head")}
    noise = run.reserve(A)
    sealed = (tmp_path / "people.budget.keys/00000002.sealed").read_bytes()

    def put_back():
        for name, data in kept.items():
            (tmp_path / name).write_bytes(data)

    put_back()  # by one record, as after a crash between key and charge: the key is kept aside
    assert run.reserve(B).key != noise.key
    aside = [path.read_bytes() for path in (tmp_path / "people.budget.keys").glob("*-aside")]
    assert aside == [sealed]
    run.reserve(C)
    put_back()
    for again in (lambda: run.reserve(A), lambda: budget(tmp_path), lambda: run.spent):
        with pytest.raises(
            FormatError, match=r"has 1 records where the keys in people\.budget\.keys tell of 2: .*nothing is released"
        ):
            again()


def test_a_budget_of_another_population_does_not_pass_in_its_place(tmp_path):
    """Of the same settings, under the same sealing key."""
    run = budget(tmp_path)
    run.reserve(A)
    for part in ("", ".head"):
        shutil.copy(f"{run.path}{part}", tmp_path / f"others.budget{part}")
    with pytest.raises(PrivacyError, match=r"name: got 'others\.budget', and the budget at .* with 'people\.budget'"):
        fc.privacy.Budget(tmp_path / "others.budget", 8.0, 1e-5, sealing_key=KEY, noise_multiplier=2.0, dimension=10)


def test_an_earlier_copy_of_both_shows_against_a_head_kept_elsewhere(tmp_path):
    run = budget(tmp_path)
    run.reserve(A)
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    run.reserve(B)
    published = run.head
    run.require(published)
    run.reserve(C)
    run.require(published)
    shutil.rmtree(tmp_path)
    shutil.copytree(tmp_path.parent / "copy", tmp_path)
    assert len(run.charges) == 1  # the files alone do not tell
    with pytest.raises(PrivacyError, match="rolled back together"):
        run.require(published)
    run.reserve(C)
    with pytest.raises(PrivacyError, match="does not continue it"):
        run.require(published)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"epsilon": 9.0}, "epsilon: got 9.0, and the budget at"),
        ({"spend": 9.0}, "spend: got 9.0, expected a share of epsilon, 8"),
        ({"neighbours": "replace_one"}, "neighbours: got 'replace_one', and the budget at"),
        ({"sampling": "none"}, "sampling: got 'none', and the budget at"),
        ({"unit": "example"}, "unit: got 'example', and the budget at"),
        ({"population": 500}, "population: got 500, and the budget at"),
        ({"population": 100_000}, "delta: got 1e-05 for a population of 100000"),
        ({"epsilon": 0}, "epsilon: got 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier: got -1.0"),
        ({"sealing_key": b"short"}, "sealing_key: got 5 bytes"),
    ],
)
def test_another_run_opens_the_budget_as_it_was_started(tmp_path, changed, named):
    budget(tmp_path)
    with pytest.raises(PrivacyError) as caught:
        budget(tmp_path, **changed)
    assert str(caught.value).startswith(named)


def test_inputs_are_named_by_a_digest_and_charged_at_one_multiplier(tmp_path):
    run = budget(tmp_path)
    for bad in ("", "a" * 63, A.upper(), 5):
        with pytest.raises(PrivacyError, match="inputs_digest: got"):
            run.reserve(bad)
    run.reserve(A)
    with pytest.raises(PrivacyError, match="inputs_digest: charge 2 has it at"):
        budget(tmp_path, noise_multiplier=3.0).reserve(A)


def test_a_budget_of_fixed_size_samples_is_accounted_as_such(tmp_path):
    run = budget(tmp_path, epsilon=50.0, sampling="fixed", neighbours="replace_one", sampling_rate=0.1)
    plan = {"noise_multiplier": 2.0, "sampling_rate": 0.1, "delta": 1e-5}
    known = fc.privacy.epsilon(**plan, sampling="fixed", neighbours="replace_one")
    assert run.reserve(A).epsilon == pytest.approx(known)
    assert chain.Head(*run.head).number == 2
