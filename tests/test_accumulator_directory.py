"""The directory of an Accumulator: one holds it at a time, and what lies in it is read or named."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedcore as fc
from fedcore.errors import FedcoreError, FormatError, MissingError, StorageError
from fedcore.rules import GeometricMedian, Krum

RULE = Krum(1)


def update(i: int, num_examples: int = 1) -> fc.Update:
    row = np.random.default_rng(i).standard_normal(50).astype(np.float32)
    return fc.Update.from_tensors({"w": row}, client_id=f"c{i}", num_examples=num_examples)


def kept(folder: Path) -> fc.Accumulator:
    made = fc.Accumulator(RULE, folder)
    for i in range(5):
        made.add(update(i))
    return made


def test_a_second_one_is_refused_and_replaces_nothing(tmp_path):
    first = kept(tmp_path / "kept")
    expected = first.result().update.digest()
    with pytest.raises(StorageError, match=r"kept: another Accumulator keeps its updates in it; wait for it, close it"):
        fc.Accumulator(RULE, tmp_path / "kept")
    first.add(update(5))
    with first:
        pass
    with pytest.raises(StorageError, match=r"kept: this Accumulator does not hold it, being closed, .*; open it with"):
        first.add(update(6))
    with fc.Accumulator(RULE, tmp_path / "kept") as second:
        assert second.client_ids == tuple(f"c{i}" for i in range(6))
    assert kept(tmp_path / "other").result().update.digest() == expected


def test_one_that_nobody_has_any_more_lets_go(tmp_path):
    kept(tmp_path / "kept")
    assert len(fc.Accumulator(RULE, tmp_path / "kept").client_ids) == 5


def test_one_that_was_refused_what_it_found_lets_go(tmp_path):
    kept(tmp_path / "kept")
    bad = tmp_path / "kept" / "bad.safetensors"
    bad.write_bytes(b"")
    with pytest.raises(FormatError) as caught:  # which keeps the object that was being made
        fc.Accumulator(RULE, tmp_path / "kept")
    bad.unlink()
    assert len(fc.Accumulator(RULE, tmp_path / "kept").client_ids) == 5
    del caught


def test_a_killed_process_lets_go_and_what_it_was_writing_is_removed(tmp_path):
    kept(tmp_path / "kept").close()
    code = (
        "import os, sys, numpy as np, fedcore as fc\n"
        "made = fc.Accumulator(fc.rules.Krum(1), sys.argv[1])\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "made.add(fc.Update.from_tensors({'w': np.ones(50, np.float32)}, client_id='killed'))"
    )
    ran = subprocess.run([sys.executable, "-B", "-c", code, str(tmp_path / "kept")], check=False)
    assert ran.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "kept").glob(".*.part"))) == 1
    again = fc.Accumulator(RULE, tmp_path / "kept")
    assert sorted(again.client_ids) == [f"c{i}" for i in range(5)]
    assert not list((tmp_path / "kept").glob(".*.part"))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_tells_its_result_and_adds_nothing(tmp_path, again):
    made = kept(tmp_path / "kept")
    other = again(made)
    assert other.result().update.digest() == made.result().update.digest()
    with pytest.raises(StorageError, match="a copy"):
        other.add(update(5))
    other.close()
    made.add(update(5))
    del other
    with pytest.raises(StorageError, match="another Accumulator"):
        fc.Accumulator(RULE, tmp_path / "kept")


def test_a_forked_child_adds_nothing(tmp_path):
    made = kept(tmp_path / "kept")
    child = os.fork()
    if child == 0:
        try:
            made.add(update(5))
        except StorageError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    made.add(update(5))
    with pytest.raises(StorageError, match="another Accumulator"):
        fc.Accumulator(RULE, tmp_path / "kept")


def test_an_update_whose_name_cannot_be_made_durable_was_not_added(tmp_path, monkeypatch):
    made = kept(tmp_path / "kept")
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(5, "Input/output error")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match="nothing half-written was left"):
            made.add(update(5))
    made.close()
    assert "c5" not in fc.Accumulator(RULE, tmp_path / "kept").client_ids


def is_a_directory(path: Path) -> None:
    path.mkdir()


def leads_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def leads_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def is_a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (is_a_directory, FormatError, "is not a regular file"),
        (leads_nowhere, MissingError, "no such file; check where the link leads"),
        (leads_to_itself, StorageError, r"cannot be read \(Too many levels of symbolic links\)"),
        (is_a_pipe, FormatError, "is not a regular file"),
    ],
)
def test_a_weight_that_is_no_file_is_named(tmp_path, make, error: type[FedcoreError], said):
    rule = GeometricMedian(weighted=True)
    with fc.Accumulator(rule, tmp_path / "kept") as made:
        made.add(update(0), 2.5)
    path = next((tmp_path / "kept").glob("*.weight"))
    path.unlink()
    make(path)
    with pytest.raises(error, match=rf"\.weight: {said}"):
        fc.Accumulator(rule, tmp_path / "kept")


def test_a_directory_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    kept(tmp_path / "kept").close()

    def listdir(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(StorageError, match=r"kept: cannot be read \(Permission denied\); check its permissions"):
        fc.Accumulator(RULE, tmp_path / "kept")
