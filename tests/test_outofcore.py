"""Cohorts in files: the bits of memory under every budget, resident memory under the budget, files that change."""

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

import fedcore as fc
from fedcore.dtypes import round_from_float64
from fedcore.errors import BudgetError, FormatError, LayoutError, MissingError, NonFiniteError, StorageError
from fedcore.rules import (
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NormClipping,
    SignMajority,
    TrimmedMean,
    tiles,
)
from fedcore.rules import budget as budgets
from fedcore.rules.budget import GRAIN, Budget, parse_memory, shown_bytes
from fedcore.rules.files import FileExecutor
from fedcore.rules.rows import RowExecutor
from fedcore.updates.file import File

#: tensors whose borders fall inside tiles and on them, an empty one, and three dtypes
SHAPES = {
    "a.weight": ((3, GRAIN), "float32"),
    "b.bias": ((5,), "float32"),
    "c.empty": ((0, 4), "float32"),
    "d.weight": ((5 * GRAIN - 5,), "float32"),
    "e.weight": ((101, 97), "float16"),
    "f.weight": ((GRAIN + 1,), "bfloat16"),
    "g.weight": ((77,), "float32"),
}
RULES = [
    Mean(),
    Krum(1),
    MultiKrum(1, 3),
    NormClipping(200.0).then(MultiKrum(1)),
    GeometricMedian(),
    Median(),
    TrimmedMean(1),
    SignMajority(0.5),
    NormClipping(200.0).then(Median()),
]


def update(i: int, shapes=SHAPES) -> fc.Update:
    rng = np.random.default_rng(i)
    tensors = {name: round_from_float64(rng.standard_normal(shape), dtype) for name, (shape, dtype) in shapes.items()}
    return fc.Update.from_tensors(tensors, client_id=f"client-{i}", num_examples=i + 1)


def written(folder: Path, updates: list[fc.Update]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for each in updates:
        paths.append(folder / f"{each.client_id}.safetensors")
        paths[-1].write_bytes(each.to_bytes())
    return paths


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> tuple[list[fc.Update], list[Path], fc.Update]:
    updates = [update(i) for i in range(6)]
    return updates, written(tmp_path_factory.mktemp("six"), updates), update(99)


@pytest.fixture
def narrow(monkeypatch):
    """Tiles of so many grains, as a budget that is small against the cohort would make them."""

    def set_grains(grains: int) -> None:
        monkeypatch.setattr(Budget, "width", lambda self, rows, itemsize, d: min(grains * GRAIN, d))

    return set_grains


@pytest.mark.parametrize("grains", [1, 2, 100])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_files_give_the_bits_of_memory_at_every_width_of_tiles(six, narrow, rule, grains):
    updates, paths, reference = six
    expected = fc.aggregate(updates, rule, "parameters", reference=reference)
    narrow(grains)
    found = fc.aggregate(paths, rule, "parameters", reference=reference, memory="1GB", threads=2)
    assert found.update.digest() == expected.update.digest()
    assert found.coefficients == expected.coefficients
    first, again = expected.report, found.report
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


@pytest.mark.parametrize(
    ("rule", "format"),
    [(Mean(), "nf4"), (Krum(1), "int8"), (Median(), None), (NormClipping(9.0).then(SignMajority(0.5)), "nf4")],
)
def test_triton_takes_tiles_of_files(narrow, tmp_path, rule, format):
    """Interpreted, where it can read what lies in main memory."""
    if reason := fc.backends.unavailable("triton"):
        pytest.skip(f"Triton cannot run here: {reason}")
    shapes = {"a": ((GRAIN + 700,), "float32"), "b": ((9, 30), "float32"), "c": ((50,), "float16")}
    updates = [update(i, shapes) for i in range(5)]
    updates = updates if format is None else [one.quantize(format) for one in updates]
    paths = written(tmp_path / "sent", updates)
    expected = fc.aggregate(updates, rule, "parameters", backend="reference")
    narrow(1)
    found = fc.aggregate(paths, rule, "parameters", memory="1GB", backend="triton")
    assert found.update.digest() == expected.update.digest()
    assert found.coefficients == expected.coefficients


@pytest.mark.parametrize("backend", ["reference", "c"])
def test_statistics_have_the_bits_of_one_pass(six, narrow, backend):
    if backend == "c" and (reason := fc.backends.unavailable("c")):
        pytest.skip(f"the C kernels are not built here: {reason}")
    updates, paths, reference = six
    references, names = {"reference": reference}, [f"client-{i}" for i in range(6)]
    passes = {"backend": backend, "threads": 2}
    whole = RowExecutor.from_cohort(fc.Cohort(updates), references, names, **passes)
    narrow(1)
    opened = fc.Cohort(fc.Update.open(path) for path in paths)
    tiled = FileExecutor.from_files(opened, references, names, **passes)
    expected, found = whole.gram(), tiled.gram()
    assert (expected.matrix.tobytes(), expected.offset) == (found.matrix.tobytes(), found.offset)
    assert whole.squared_norms()[0].tobytes() == tiled.squared_norms()[0].tobytes()
    pairs = np.array([(0, 1), (5, 6), (3, 3)])
    mix = np.random.default_rng(0).random((7, 7))
    for mixed in (None, mix):
        assert whole.exact(pairs, mixed)[0].tobytes() == tiled.exact(pairs, mixed)[0].tobytes()


@pytest.mark.parametrize("rule", [Krum(1), Median(), NormClipping(200.0)], ids=repr)
def test_the_reference_backend_agrees(six, narrow, rule):
    updates, paths, reference = six
    expected = fc.aggregate(updates, rule, "parameters", reference=reference, backend="reference")
    narrow(1)
    found = fc.aggregate(paths, rule, "parameters", reference=reference, backend="reference")
    assert found.update.digest() == expected.update.digest()


def test_pairs_that_are_too_close_are_redone_from_files(narrow, tmp_path):
    """Clients that hold one block of values in columns of their own are all as far apart: the exact pass settles it."""
    block = np.random.default_rng(5).standard_normal(5003).astype(np.float32)
    clients = []
    for i in range(7):
        row = np.zeros((7, 5003), np.float32)
        row[i] = block
        clients.append(fc.Update.from_tensors({"x": row}, client_id=f"client-{i}"))
    paths = written(tmp_path / "ties", clients)
    narrow(1)
    for rule in (Krum(2), NormClipping(120.0).then(Krum(2))):
        expected = fc.aggregate(clients, rule, "parameters")
        found = fc.aggregate(paths, rule, "parameters")
        counts = [each.report.get("mixed_rows", each.report)["redone_pairs"] for each in (expected, found)]
        assert counts[0] == counts[1] > 0
        assert found.update.digest() == expected.update.digest()


def test_memory_mapped_and_mixed_cohorts(six, narrow):
    """A mapped update is read from its file; updates in memory and in files go together."""
    updates, paths, _ = six
    expected = fc.aggregate(updates, Krum(1), "parameters").update.digest()
    narrow(1)
    assert fc.aggregate([*updates[:3], *paths[3:]], Krum(1), "parameters").update.digest() == expected
    assert fc.aggregate(updates, Krum(1), "parameters", memory="1GB").update.digest() == expected


def test_a_directory_of_peft_is_opened_without_a_map(tmp_path):
    made = []
    for i in range(4):
        rng = np.random.default_rng(i)
        tensors = {
            "m.lora_A.weight": rng.standard_normal((2, 40)).astype(np.float32),
            "m.lora_B.weight": rng.standard_normal((30, 2)).astype(np.float32),
            "head.weight": rng.standard_normal((50, 60)).astype(np.float32),
        }
        made.append(fc.Update.from_tensors(tensors, client_id=f"c{i}", scaling={"m": 2.0}, num_examples=3))
        made[-1].to_peft(tmp_path / f"c{i}")
    paths = [tmp_path / f"c{i}" for i in range(4)]
    opened = fc.Update.open(paths[1])
    mapped = fc.Update.from_peft(paths[1])
    assert (opened.mapped, mapped.mapped, opened.buffer.size) == (False, True, 0)
    assert opened.digest() == mapped.digest() == made[1].digest()
    assert opened.to_bytes() == mapped.to_bytes()
    assert (opened.client_id, opened.num_examples, opened.scaling) == ("c1", 3, {"m": 2.0})
    for name, tensor in opened.tensors.items():
        np.testing.assert_array_equal(tensor, made[1].tensors[name])
    for space in ("delta", "parameters"):
        expected = fc.aggregate([fc.Update.from_peft(path) for path in paths], MultiKrum(0, 3), space)
        found = fc.aggregate(paths, MultiKrum(0, 3), space, memory="100MB")
        assert found.update.digest() == expected.update.digest()
    with pytest.raises(LayoutError, match="client 'c1': lies in a file that is not mapped"):
        fc.Cohort([opened]).tables()


@pytest.mark.parametrize("formats", [("int8",), ("nf4",), ("float16",), ("int8", "nf4", "bfloat16", None)])
@pytest.mark.parametrize("rule", [Mean(), Krum(1), Median()], ids=repr)
def test_quantised_files_are_decoded_tile_by_tile(six, narrow, tmp_path, formats, rule):
    """Tiles end inside blocks of 64 and under nested scales; a cohort may mix formats."""
    kinds = [formats[i % len(formats)] for i in range(6)]
    sent = [u if kind is None else u.quantize(kind) for u, kind in zip(six[0], kinds, strict=True)]
    paths = written(tmp_path / "sent", sent)
    opened = fc.Update.open(paths[1])
    assert opened.digest() == sent[1].digest()
    for name, tensor in opened.tensors.items():
        np.testing.assert_array_equal(tensor, sent[1].tensors[name])
    expected = fc.aggregate(sent, rule, "parameters", reference=six[2])
    narrow(1)
    found = fc.aggregate(paths, rule, "parameters", reference=six[2])
    assert found.update.digest() == expected.update.digest()
    assert found.coefficients == expected.coefficients


def test_one_client_no_columns_and_one_column(tmp_path):
    for shape in ((0,), (1,), (3, 0, 2)):
        one = update(3, {"x": (shape, "float32")})
        [path] = written(tmp_path / f"{len(shape)}-{shape[0]}", [one])
        for rule in (Mean(), Median()):
            assert fc.aggregate([path], rule, "parameters", memory="70MB").update.digest() == one.digest()


def test_nan_is_named_by_client_tensor_and_element_or_excluded(six, narrow, tmp_path):
    updates, _, reference = six
    tensors = {name: np.array(values) for name, values in updates[4].tensors.items()}
    tensors["d.weight"][GRAIN + 3] = np.nan
    bad = fc.Update.from_tensors(tensors, client_id="client-4", num_examples=5)
    paths = written(tmp_path / "bad", [*updates[:4], bad, updates[5]])
    narrow(1)
    for rule in (Mean(), Krum(1), Median(), NormClipping(200.0).then(Median()), NormClipping(9.0)):
        with pytest.raises(NonFiniteError, match=f"client 'client-4': tensor 'd.weight' .* at element {GRAIN + 3};"):
            fc.aggregate(paths, rule, "parameters", reference=reference)
        found = fc.aggregate(paths, rule, "parameters", reference=reference, on_nonfinite="exclude")
        rest = [*updates[:4], updates[5]]
        assert list(found.excluded) == ["client-4"]
        assert found.update.digest() == fc.aggregate(rest, rule, "parameters", reference=reference).update.digest()


def test_progress_counts_the_tiles_of_each_pass(six, narrow):
    _, paths, _ = six
    narrow(2)
    told: list[tuple[str, int, int]] = []
    fc.aggregate(paths, Krum(1), "parameters", progress=lambda *said: told.append(said))
    passes = {work: [done for name, done, _ in told if name == work] for work, _, _ in told}
    assert {work.partition(",")[0] for work in passes} - {"pairs"} == {"gram", "combination"}
    assert passes["gram, float32"] == [0, 1, 2, 3, 4, 5]
    for work, done in passes.items():
        assert done == list(range(len(done))), work
        assert {total for name, _, total in told if name == work} == {len(done) - 1}, work


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20_000)


def write_to(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"0000")


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.rename(path)


CHANGES = [
    (shrink, FormatError, "now has .* bytes, expected .*: it changed|it shrank"),
    (write_to, FormatError, "was written to"),
    (replace, FormatError, "was replaced"),
    (Path.unlink, MissingError, "no such file"),
]


@pytest.mark.parametrize(("change", "kind", "said"), CHANGES, ids=["shrinks", "is written to", "is replaced", "goes"])
@pytest.mark.parametrize("rule", [Mean(), Krum(1)], ids=repr)
def test_a_file_that_changes_before_it_is_read_is_named(six, tmp_path, change, kind, said, rule):
    paths = written(tmp_path / "changing", six[0])
    opened = [fc.Update.open(path) for path in paths]
    change(paths[2])
    with pytest.raises(kind, match=f"client 'client-2': .*client-2.safetensors: .*({said})"):
        fc.aggregate(opened, rule, "parameters")


@pytest.mark.parametrize("keep", [0, 3, 100])
@pytest.mark.parametrize(("change", "said"), [(shrink, CHANGES[0][2]), (write_to, CHANGES[1][2])])
def test_a_file_that_changes_while_it_is_read_is_named(six, narrow, monkeypatch, tmp_path, change, said, keep):
    """After the first tile of the pass, whether files stay open between visits or not."""
    from fedcore.rules import tiles

    # one dtype, so one pass: files that stay open are opened once, before the change
    paths = written(tmp_path / "changing", [update(i, {"x": ((9 * GRAIN,), "float32")}) for i in range(6)])
    monkeypatch.setattr(tiles, "open_files_allowed", lambda: keep)
    narrow(1)

    def at_the_first_tile(work: str, done: int, total: int) -> None:
        if done == 1 and paths[2].stat().st_mtime_ns == before:
            change(paths[2])

    before = paths[2].stat().st_mtime_ns
    with pytest.raises(FormatError, match=f"client 'client-2': .*client-2.safetensors: .*({said})"):
        fc.aggregate(paths, Median(), "parameters", progress=at_the_first_tile)


def test_a_file_that_may_not_be_read_is_named(six, monkeypatch):
    """Denied by a stand-in for the system's open: whoever runs the tests may be root, who may read everything."""
    really = os.open

    def denied(path, *rest):
        if str(path).endswith("client-1.safetensors"):
            raise PermissionError(13, "Permission denied")
        return really(path, *rest)

    opened = [fc.Update.open(path) for path in six[1]]
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(StorageError, match=r"client-1.safetensors: cannot be read \(Permission denied\); check its"):
        fc.Update.open(six[1][1])
    with pytest.raises(StorageError, match=r"client 'client-1': .*client-1.safetensors: cannot be read"):
        fc.aggregate(opened, Mean(), "parameters")


def test_an_error_of_the_disk_is_named(six, monkeypatch):
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(StorageError, match=r"safetensors: cannot be read \(Input/output error\)"):
        fc.aggregate(six[1], Mean(), "parameters")


def test_what_is_no_file(tmp_path):
    with pytest.raises(MissingError, match="nowhere: no such directory"):
        fc.Update.open(tmp_path / "nowhere")
    with pytest.raises(MissingError, match=r"nowhere\.safetensors: no such file"):
        fc.Update.open(tmp_path / "nowhere.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="pipe: is not a regular file"):
        fc.Update.open(tmp_path / "pipe")
    (tmp_path / "short").write_bytes(b"1234")
    with pytest.raises(FormatError, match="short: has 4 bytes, expected at least 8"):
        fc.Update.open(tmp_path / "short")
    (tmp_path / "long").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(FormatError, match="long: claims a header of 1099511627776 bytes"):
        fc.Update.open(tmp_path / "long")
    with pytest.raises(FormatError, match="pipe: is not a regular file"):
        File.at(tmp_path / "pipe")


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


@pytest.mark.parametrize(
    ("given", "count"),
    [("1GB", 10**9), ("512MiB", 2**29), ("1.5 GB", 15 * 10**8), ("64kB", 64000), ("2K", 2000), ("3GiB", 3 << 30),
     ("100", 100), ("7B", 7), (12345, 12345), (np.int64(5), 5)],
)  # fmt: skip
def test_sizes(given, count):
    assert parse_memory(given) == count


@pytest.mark.parametrize("given", ["", "GB", "1 XB", "-1GB", "1e9", 0, -5, 1.5, True, [], "0"])
def test_what_is_no_size(given):
    with pytest.raises(BudgetError, match=r"memory: got .*, expected bytes or a size such as '1GB'"):
        fc.aggregate([update(0)], Mean(), "parameters", memory=given)


def test_a_budget_too_small_says_the_least_and_the_least_works(six):
    _, paths, _ = six
    for rule in (Median(), Krum(1)):
        with pytest.raises(BudgetError, match=r"memory: got 10 MB, expected at least .* for 6 clients") as refused:
            fc.aggregate(paths, rule, "parameters", memory="10 MB")
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
