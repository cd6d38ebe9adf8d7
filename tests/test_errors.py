"""Errors that are raised again with more to say stay what they are."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest

import fedcore as fc
from fedcore import errors
from fedcore.errors import FedcoreError, NonFiniteError, Void
from fedcore.rules import Krum
from fedcore.updates.file import File

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FedcoreError)]


class Numbered(FedcoreError, ValueError):
    """An error that is not made from its message."""

    def __init__(self, number: int, *, of: int):
        super().__init__(f"got {number} of {of}")
        self.number = number


@pytest.mark.parametrize("kind", TREE)
def test_every_error_takes_another_message(kind):
    error = kind("old")
    found = error.with_message("new")
    assert type(found) is kind
    assert (str(found), str(error)) == ("new", "old")
    assert str(pickle.loads(pickle.dumps(found))) == "new"


def test_what_an_error_knows_stays_with_another_message():
    found = NonFiniteError("NaN", row=3, column=5, read=[3, 4]).with_message("client 'a': NaN")
    assert (str(found), found.row, found.column, found.read) == ("client 'a': NaN", 3, 5, (3, 4))
    assert Void("too few", ["a", "b"]).with_message("void").suspects == ["a", "b"]
    found = Numbered(2, of=3).with_message("arm 'x': got 2 of 3")
    assert (type(found), found.number, str(found)) == (Numbered, 2, "arm 'x': got 2 of 3")


def updates(folder):
    for k in range(6):
        path = folder / f"{k}.safetensors"
        path.write_bytes(fc.Update.from_tensors({"w": np.full(50, k, np.float32)}).to_bytes())
        yield fc.Update.open(path, client_id=f"client-{k}")


def test_an_error_in_a_file_of_the_cohort_keeps_what_it_knows(tmp_path, monkeypatch):
    cohort = list(updates(tmp_path))

    def read_into(file, *_):
        raise Numbered(1, of=2)

    monkeypatch.setattr(File, "read_into", read_into)
    with pytest.raises(Numbered, match=r"^client 'client-\d': .*got 1 of 2$") as caught:
        fc.aggregate(cohort, Krum(1), space="parameters")
    assert caught.value.number == 1


def test_an_error_in_a_file_of_the_accumulator_keeps_what_it_knows(tmp_path, monkeypatch):
    made = fc.Accumulator(Krum(1), tmp_path / "kept")
    for update in updates(tmp_path):
        made.add(update)

    def opened(_file):
        raise Numbered(1, of=2)

    monkeypatch.setattr(File, "opened", opened)
    with pytest.raises(Numbered, match=r"^client 'client-\d': got 1 of 2$") as caught:
        made.result()
    assert caught.value.number == 1
