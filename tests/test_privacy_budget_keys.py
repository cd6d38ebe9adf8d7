"""The noise keys of a budget: sealed, destroyed, and what they tell of a file that was put back."""

from __future__ import annotations

import stat

import pytest
from private_budgets import A, B, C, budget

from fedcore.errors import FormatError, PrivacyError

pytest.importorskip("dp_accounting", reason="budgets need dp-accounting, of the extra `train`")


def test_keys_are_sealed_private_and_destroyed_for_good(tmp_path):
    run = budget(tmp_path)
    noise = run.reserve(A)
    folder = tmp_path / "people.budget.keys"
    (sealed,) = folder.iterdir()
    assert noise.key not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert noise.key.hex() not in repr(noise)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, sealed, run.path)] == [0o700, 0o600, 0o600]
    spent = run.spent
    assert run.destroy_keys() == 1
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("00000002.destroyed", b"")]
    assert run.spent == spent
    with pytest.raises(PrivacyError, match=r"key of charge 2 was destroyed.*stays charged"):
        run.reserve(A)
    assert run.reserve(B).key != noise.key
    assert run.reserve(B).number == 4


def test_a_file_put_back_with_its_head_shows_after_its_keys_were_destroyed(tmp_path):
    run = budget(tmp_path)
    names = ("people.budget", "people.budget.head")
    copies = []
    for inputs in (A, B):
        copies.append({name: (tmp_path / name).read_bytes() for name in names})
        run.reserve(inputs)
    copies.append({name: (tmp_path / name).read_bytes() for name in names})
    assert (run.destroy_keys(), run.destroy_keys()) == (2, 0)
    last = {name: (tmp_path / name).read_bytes() for name in names}
    for copy in copies:
        for name in names:
            (tmp_path / name).write_bytes(copy[name])
        for again in (lambda: run.reserve(C), lambda: budget(tmp_path), lambda: run.spent):
            with pytest.raises(FormatError, match=r"records where the keys in .* tell of 4: .*nothing is released"):
                again()
    for name in names:
        (tmp_path / name).write_bytes(last[name])
    assert len(run.charges) == 2


def test_a_run_destroys_its_own_keys_alone(tmp_path):
    first, second = budget(tmp_path, run="first"), budget(tmp_path, run="second")
    first.reserve(A)
    key = second.reserve(B).key
    first.reserve(C)
    assert (first.own, second.own) == ([2, 4], [3])
    assert first.destroy_keys() == 2
    assert second.reserve(B).key == key
    with pytest.raises(PrivacyError, match="key of charge 4 was destroyed"):
        first.reserve(C)
    assert len(second.charges) == 3


def test_a_sealed_key_that_was_changed_swapped_or_lost_is_refused(tmp_path):
    run = budget(tmp_path)
    run.reserve(A)
    run.reserve(B)
    first, second = sorted((tmp_path / "people.budget.keys").iterdir())
    kept = first.read_bytes()
    for damage in (lambda: first.write_bytes(second.read_bytes()), lambda: first.write_bytes(kept[:-1]), first.unlink):
        damage()
        with pytest.raises(FormatError, match="sealed key of charge 2"):
            run.reserve(A)
    with pytest.raises(FormatError, match="another sealing key"):
        budget(tmp_path, sealing_key=bytes(32))


def test_one_charge_put_back_again_and_again_is_refused_until_its_keys_are_taken_away(tmp_path):
    run, folder = budget(tmp_path), tmp_path / "people.budget.keys"
    before = {name: (tmp_path / name).read_bytes() for name in ("people.budget", "people.budget.head")}
    for time in range(4):
        run.reserve(A)
        if time < 3:
            for name, data in before.items():
                (tmp_path / name).write_bytes(data)
    for again in (lambda: run.reserve(B), lambda: budget(tmp_path), lambda: run.spent):
        with pytest.raises(
            FormatError, match=r"3 keys of charge 2 were put aside: .*move .*00000002\.\*-aside to another"
        ):
            again()
    for path in folder.glob("00000002.*-aside"):
        path.rename(tmp_path / path.name)
    assert run.reserve(B).number == 3
