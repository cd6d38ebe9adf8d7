"""Errors that are raised again with more to say stay what they are."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import sys

import numpy as np
import pytest

import fedcore as fc
from fedcore import errors
from fedcore.errors import DependencyError, ExistsError, FedcoreError, MissingError, NonFiniteError, StorageError, Void
from fedcore.rules import Krum
from fedcore.updates.atomic import Unwritten
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


def adapter():
    tensors = {"m.lora_A.weight": np.ones((1, 2), np.float32), "m.lora_B.weight": np.ones((2, 1), np.float32)}
    return fc.Update.from_tensors(tensors, scaling={"m": 2.0})


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_the_system_refused_keeps_its_number_and_its_file(tmp_path, monkeypatch):
    out, missing = tmp_path / "out", tmp_path / "none.safetensors"
    adapter().to_peft(out)
    with pytest.raises(FileExistsError) as exists:
        adapter().to_peft(out)
    with pytest.raises(FileNotFoundError) as absent:
        fc.Update.open(missing)
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError) as inside:
        fc.Update.open(tmp_path / "file" / "a.safetensors")
    opened = fc.Update.open(out)
    (out / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError) as gone:
        opened.to_bytes()
    with pytest.raises(OSError, match="adapter_model") as half:
        fc.Update.from_peft(out)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left") as full:
        adapter().to_peft(tmp_path / "new")
    weights = str(out / "adapter_model.safetensors")
    for caught, kind, number, path in (
        (exists, ExistsError, errno.EEXIST, str(out)),
        (absent, MissingError, errno.ENOENT, str(missing)),
        (inside, MissingError, errno.ENOTDIR, str(tmp_path / "file" / "a.safetensors")),
        (gone, MissingError, errno.ENOENT, weights),
        (half, MissingError, errno.ENOENT, weights),
        (full, StorageError, errno.ENOSPC, str(tmp_path / "new")),
    ):
        error = caught.value
        assert type(error) is kind
        for same in (error, error.with_message(str(error)), pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(same) is kind
            assert (same.errno, same.filename, same.strerror) == (number, path, None)
            assert str(same) == str(error)
            assert str(same).startswith(path + ": ")


def test_an_error_of_the_system_says_its_message_alone():
    error = StorageError("disk: cannot be written", errno=errno.EIO, filename="disk")
    assert (str(error), error.args) == ("disk: cannot be written", ("disk: cannot be written",))
    assert (StorageError("x").errno, StorageError("x").filename) == (None, None)
    later = pickle.loads(pickle.dumps(Unwritten("x", errno=errno.EDQUOT, filename="y")))
    assert (type(later), later.errno, later.filename) == (Unwritten, errno.EDQUOT, "y")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError) as caught:
        fc.privacy.epsilon(noise_multiplier=1.0, sampling_rate=0.1, rounds=2, delta=1e-5)
    for same in (caught.value, caught.value.with_message("x"), pickle.loads(pickle.dumps(caught.value))):
        assert (type(same), same.name) == (DependencyError, "dp_accounting")
