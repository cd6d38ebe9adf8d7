"""Budgets of cohorts in files: sizes, the least that works, descriptors, and resident memory that stays under them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from outofcore_files import narrowed, six_clients, update, written

import fedcore as fc
from fedcore.errors import BudgetError
from fedcore.numbers import shown_bytes
from fedcore.rules import Krum, Mean, Median, NormClipping, tiles
from fedcore.rules import budget as budgets
from fedcore.rules.budget import GRAIN, Budget, parse_memory


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> tuple[list[fc.Update], list[Path], fc.Update]:
    return six_clients(tmp_path_factory.mktemp("six"))


@pytest.fixture
def narrow(monkeypatch):
    return narrowed(monkeypatch)


@pytest.mark.parametrize(
    ("given", "count"),
    [("1GB", 10**9), ("512MiB", 2**29), ("1.5 GB", 15 * 10**8), ("64kB", 64000), ("2K", 2000), ("3GiB", 3 << 30),
     ("100", 100), ("7B", 7), (12345, 12345), (np.int64(5), 5)],
)  # fmt: skip
def test_sizes(given, count):
    assert parse_memory(given) == count


@pytest.mark.parametrize("given", ["", "GB", "1 XB", "-1GB", "1e9", -5, 1.5, True, []])
def test_what_is_no_size(given):
    with pytest.raises(BudgetError, match=r"memory: got .*, expected bytes or a size such as '1GB'"):
        fc.aggregate([update(0)], Mean(), "parameters", memory=given)


def test_a_budget_too_small_says_the_least_and_the_least_works(six):
    _, paths, _ = six
    for rule, given, shown in (
        (Median(), "10 MB", "10 MB"),
        (Krum(1), 10**7, "10 MB"),
        (Mean(), 0, "0"),
        (Mean(), "0", "0"),
    ):
        with pytest.raises(BudgetError, match=rf"memory: got {shown}.*, expected at least .* for 6 clients") as refused:
            fc.aggregate(paths, rule, "parameters", memory=given)
        least = str(refused.value).partition("at least ")[2].partition(" for")[0]
        assert fc.aggregate(paths, rule, "parameters", memory=least).update.num_examples
        with pytest.raises(BudgetError):
            fc.aggregate(paths, rule, "parameters", memory=int(parse_memory(least) * 0.99))


def test_sizes_are_shown_rounded_up():
    assert [shown_bytes(n) for n in (999, 1000, 36_000_001, 10**9, 1_234_567_890)] == [
        "999 bytes", "1 kB", "36.1 MB", "1 GB", "1.24 GB"]  # fmt: skip
    for n in (1, 999, 1001, 123_456, 99_999_999, 10**10 + 1):
        assert parse_memory(shown_bytes(n).replace(" bytes", "")) >= n


@pytest.mark.parametrize("mixtures", [0, 1000])
def test_tiles_and_what_is_beside_them_fit_the_budget(mixtures):
    for total in (10**8, 10**9, 7 * 10**9):
        for rows, itemsize, margin in (
            (3, 4, 0),
            (100, 2, 0),
            (1000, 4, 0),
            (100, 1.0625, 9000),
            (1000, 0.516, 20_000),
        ):
            one = Budget(total, rows, itemsize, 10**6, 12, 2, margin, mixtures)
            if one.least > total:
                continue
            width = one.width(rows, itemsize, 1 << 40)
            assert width % GRAIN == 0
            tiles = budgets.SLOTS * rows * (width * itemsize + margin + budgets.PADDING) + width * budgets.COLUMN
            assert one.held + one.mixed + tiles <= total
            assert one.mixed >= 4 * 1024 * mixtures


def test_threads_and_descriptors_are_gone_afterwards(six, narrow):
    import threading

    before = set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else set()
    narrow(1)
    fc.aggregate(six[1], Krum(1), "parameters")
    with pytest.raises(ZeroDivisionError):
        fc.aggregate(six[1], Krum(1), "parameters", progress=lambda work, done, total: 1 // (1 - done))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fedcore-read")]
    if before:
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_more_files_than_may_be_open(six, narrow, tmp_path):
    """Sixty files where the process may open forty: some stay open between visits, the rest are opened for each."""
    small = {"x": ((3 * GRAIN,), "float32")}
    updates = [update(i, small) for i in range(60)]
    paths = written(tmp_path / "many", updates)
    narrow(1)
    expected = fc.aggregate(updates, Median(), "parameters").update.digest()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as others:
        for _ in range(100):  # a process that holds many files of its own: what counts is what is left
            others.enter_context(open(os.devnull))
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 40, hard))
        others.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        assert 0 < tiles.open_files_allowed() <= 21
        assert fc.aggregate(paths, Median(), "parameters").update.digest() == expected


MEASURED = """
import json, sys
import fedcore as fc
from fedcore.rules import Krum, Median, NormClipping
rules = {"krum": Krum(3), "median": Median(), "mixed": NormClipping(500.0).then(Median())}
found = fc.aggregate(sys.argv[3:], rules[sys.argv[1]], "parameters", memory=sys.argv[2])
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([peak, found.update.digest()]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize(("rule", "budget"), [("krum", 90), ("median", 90), ("mixed", 150)])
def test_resident_memory_stays_under_the_budget(tmp_path_factory, rule, budget):
    """240 MB of files under less, in a process of its own, its interpreter included."""
    folder = tmp_path_factory.getbasetemp() / "forty"
    if not folder.exists():
        written(folder, [update(i, {"x": ((1500, 1000), "float32")}) for i in range(40)])
    paths = sorted(map(str, folder.iterdir()))
    command = [sys.executable, "-c", MEASURED, rule, f"{budget}MB", *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, digest = json.loads(run.stdout)
    assert peak < budget * 1_000_000
    rules = {"krum": Krum(3), "median": Median(), "mixed": NormClipping(500.0).then(Median())}
    assert digest == fc.aggregate(paths, rules[rule], "parameters", memory="4GB").update.digest()
