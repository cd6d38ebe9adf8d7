"""PEFT directories: opened without being read, written whole or not at all, and every wrong one named."""

import errno
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fedcore.errors import ExistsError, FormatError, LayoutError, MissingError, StorageError, WeightError
from fedcore.updates import Update
from fedcore.updates import directory as peft_directory

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q, K = "base_model.model.h.q", "base_model.model.h.k"


def pair(module: str, rank: int = 2) -> dict[str, np.ndarray]:
    """A pair with d_in 3 and d_out 4."""
    a = np.arange(rank * 3, dtype=np.float32).reshape(rank, 3)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": np.ones((4, rank), np.float32)}


def written(path: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    """A directory as PEFT would write it."""
    path.mkdir(parents=True)
    (path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config))
    safetensors.numpy.save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    return path


def test_a_directory_goes_out_and_comes_back(tmp_path):
    update = Update.from_tensors(
        pair(Q) | pair(K, 3), scaling={Q: 2.0, K: 0.5}, client_id="c", num_examples=9, base="some/base"
    )
    update.to_peft(tmp_path / "new" / "out")
    assert sorted(os.listdir(tmp_path / "new" / "out")) == [CONFIG, WEIGHTS]
    assert os.listdir(tmp_path / "new") == ["out"]
    same = Update.from_peft(tmp_path / "new" / "out")
    assert same.digest() == update.digest()
    assert (same.client_id, same.num_examples, same.base) == ("c", 9, "some/base")
    update.to_peft(tmp_path / "again")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / "out" / name).read_bytes()


def test_what_no_metadata_says(tmp_path, monkeypatch):
    path = written(tmp_path / "client-3", pair(Q), base_model_name_or_path="b")
    update = Update.from_peft(path)
    assert (update.client_id, update.num_examples, update.base) == ("client-3", 1, "b")
    assert not update.counted
    assert not Update.from_bytes(update.to_bytes()).counted
    update.to_peft(tmp_path / "copy")
    assert not Update.from_peft(tmp_path / "copy").counted
    assert Update.from_peft(path, num_examples=1).counted
    update = Update.from_peft(str(path), num_examples=5, client_id="x")
    assert (update.client_id, update.num_examples) == ("x", 5)
    monkeypatch.chdir(path)
    assert Update.from_peft(".").client_id == "client-3"
    for count in (0, 2**40 + 1):
        with pytest.raises(WeightError, match=f"num_examples: got {count}, expected a whole number from 1 to {2**40}"):
            Update.from_peft(path, num_examples=count)
    assert Update.from_bytes(Update.from_peft(path, num_examples=2**40).to_bytes()).num_examples == 2**40


def test_an_argument_beats_the_metadata(tmp_path):
    Update.from_tensors(pair(Q), scaling={Q: 1.0}, client_id="c", num_examples=9).to_peft(tmp_path / "d")
    update = Update.from_peft(tmp_path / "d", num_examples=2, client_id="e")
    assert (update.client_id, update.num_examples) == ("e", 2)


def test_a_base_that_fedcore_wrote_beats_the_path_in_the_config(tmp_path):
    config = {"r": 2, "lora_alpha": 4, "base_model_name_or_path": "where/one/machine/has/it"}
    Update.from_tensors(pair(Q), base="digest", adapter_config=config).to_peft(tmp_path / "d")
    update = Update.from_peft(tmp_path / "d")
    assert update.base == "digest"
    assert update.adapter_config["base_model_name_or_path"] == "where/one/machine/has/it"


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / np.sqrt(2)),
        ({"r": 8, "rank_pattern": {"q": 2}}, 2.0),
        ({"r": 8, "rank_pattern": {"h.q": 2}}, 2.0),
        ({"r": 8, "rank_pattern": {r"h\.(q|k)": 2}}, 2.0),
        ({"rank_pattern": {"x": 8, ".*": 2, "q": 7}}, 2.0),
        ({"alpha_pattern": {"q": 3}}, 1.5),
        ({"alpha_pattern": {"^h.q": 3}}, 1.5),
        ({"alpha_pattern": {"h": 3, "z": 3, "hq": 3}}, 2.0),
        ({"alpha_pattern": {"q": 1, "h.q": 3}}, 0.5),
        ({"alpha_pattern": {"h|z": 3, ".q": 3}}, 2.0),
        ({"alpha_pattern": {"h|q": 3}}, 1.5),
        ({"alpha_pattern": None, "rank_pattern": None, "lora_alpha": 0.5}, 0.25),
        ({"lora_alpha": -4}, -2.0),
    ],
)
def test_scales(tmp_path, config, scale):
    assert Update.from_peft(written(tmp_path / "d", pair(Q), **config)).scaling == {Q: scale}


def test_targets_are_sorted_and_patterns_keep_their_order(tmp_path):
    patterns = {"q": 4, "h": 5, ".*": 6}
    config = {"target_modules": ["q", "k", "b"], "exclude_modules": ["z", "a"], "alpha_pattern": patterns}
    update = Update.from_peft(written(tmp_path / "d", pair(Q), **config))
    assert update.adapter_config["target_modules"] == ["b", "k", "q"]
    assert update.adapter_config["exclude_modules"] == ["a", "z"]
    update.to_peft(tmp_path / "e")
    assert list(json.loads((tmp_path / "e" / CONFIG).read_text())["alpha_pattern"]) == list(patterns)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": None}, "got r None, expected a whole number"),
        ({"r": 0}, "got r 0"),
        ({"r": 2.0}, "got r 2.0"),
        ({"r": 10**400}, "got r an integer of 1329 bits"),
        ({"r": 3}, r"'base_model.model.h.q.lora_A.weight': has rank 2, adapter_config says 3"),
        ({"rank_pattern": {"q": 5}}, "adapter_config says 5"),
        ({"rank_pattern": {"q": "2"}}, "got rank_pattern 'q' '2'"),
        ({"rank_pattern": []}, None),
        ({"rank_pattern": [1]}, r"got rank_pattern \[1\]"),
        ({"lora_alpha": None}, "got lora_alpha None"),
        ({"lora_alpha": 0}, "got lora_alpha 0"),
        ({"lora_alpha": True}, "got lora_alpha True"),
        ({"alpha_pattern": {"q": 10**400}}, "got alpha_pattern 'q' an integer of 1329 bits"),
        ({"alpha_pattern": {"(": 1}}, r"pattern '\(' is not valid"),
        ({"alpha_pattern": {"(a+)+": 1}}, r"pattern '\(a\+\)\+' could take very long"),
        ({"alpha_pattern": {".*" * 30: 1}}, "could take very long"),
        ({"alpha_pattern": {"(a|a)" * 100: 1}}, "could take very long"),
        ({"alpha_pattern": {"a?" * 100: 1}}, "could take very long"),
        ({"use_dora": True}, "use_dora is not supported: DoRA"),
        ({"kasa_config": {"beta": 1}}, "kasa_config is not supported"),
        ({"peft_type": "ADALORA"}, "got peft_type 'ADALORA'"),
        ({"base_model_name_or_path": 3}, "base: got 3"),
    ],
)
def test_every_wrong_config_is_named(tmp_path, config, words):
    path = written(tmp_path / "d", pair(Q), **config)
    if words is None:
        assert Update.from_peft(path).scaling == {Q: 2.0}
        return
    start = time.perf_counter()
    with pytest.raises(FormatError, match=words) as caught:
        Update.from_peft(path)
    assert time.perf_counter() - start < 1
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"r": NaN}', b'{"r": 1, "r": 2}', b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_named(tmp_path, text):
    path = written(tmp_path / "d", pair(Q))
    (path / CONFIG).write_bytes(text)
    with pytest.raises(FormatError, match=CONFIG):
        Update.from_peft(path)


def test_a_config_above_the_limit_is_not_read(tmp_path):
    path, most = written(tmp_path / "d", pair(Q)), 10_000_000
    os.truncate(path / CONFIG, most + 1)
    with pytest.raises(FormatError, match=f"{CONFIG}: has {most + 1} bytes, expected at most {most}; write the file"):
        Update.from_peft(path)
    os.truncate(path / CONFIG, most)
    with pytest.raises(FormatError, match="not valid JSON"):
        Update.from_peft(path)


def test_what_is_not_one_adapter_is_named(tmp_path):
    with pytest.raises(MissingError, match="nowhere: no such directory"):
        Update.from_peft(tmp_path / "nowhere")
    path = written(tmp_path / "d", pair(Q))
    with pytest.raises(FormatError, match=f"{WEIGHTS}: is a file, expected a PEFT adapter directory"):
        Update.from_peft(path / WEIGHTS)
    (path / "other.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match=rf"holds {WEIGHTS}, other.safetensors, expected {WEIGHTS} alone"):
        Update.from_peft(path)
    (path / WEIGHTS).unlink()
    with pytest.raises(FormatError, match=r"holds other\.safetensors, expected adapter_model"):
        Update.from_peft(path)
    (path / "other.safetensors").unlink()
    with pytest.raises(MissingError, match=f"{WEIGHTS}: no such file"):
        Update.from_peft(path)
    (path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(FormatError, match=r"adapter_model.bin: is a pickle, expected adapter_model.safetensors"):
        Update.from_peft(path)
    (path / CONFIG).unlink()
    with pytest.raises(MissingError, match=f"{CONFIG}: no such file"):
        Update.from_peft(path)
    assert isinstance(MissingError("x"), FileNotFoundError)


def test_a_broken_file_names_itself_and_the_tensor(tmp_path):
    path = written(tmp_path / "d", pair(Q))
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole[:-1])
    with pytest.raises(FormatError, match=f"{WEIGHTS}: tensor 'base_model.*truncated"):
        Update.from_peft(path)
    (path / WEIGHTS).write_bytes(b"")
    with pytest.raises(FormatError, match=f"{WEIGHTS}: has 0 bytes"):
        Update.from_peft(path)
    (path / WEIGHTS).unlink()
    os.mkfifo(path / WEIGHTS)
    with pytest.raises(FormatError, match=f"{WEIGHTS}: is not a regular file"):
        Update.from_peft(path)
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).symlink_to("nowhere")
    with pytest.raises(MissingError, match=f"{WEIGHTS}: no such file; check where the link leads"):
        Update.from_peft(path)


def test_an_output_that_exists_is_never_touched(tmp_path):
    update = Update.from_tensors(pair(Q), scaling={Q: 1.0})
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("directory", "file", "link"):
        with pytest.raises(ExistsError, match=f"{name}: exists, expected a new directory"):
            update.to_peft(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["directory", "file", "link"]
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(StorageError, match="cannot be written"):
        update.to_peft(tmp_path / "file" / "below")


def test_a_dense_update_without_a_config_is_no_peft_directory(tmp_path):
    with pytest.raises(LayoutError, match=r"out: the update has no LoRA pair.*to_bytes"):
        Update.from_tensors({"x": np.ones(2, np.float32)}).to_peft(tmp_path / "out")
    update = Update.from_tensors({"x.ia3": np.ones(2, np.float32)}, adapter_config={"peft_type": "IA3"})
    update.to_peft(tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text()) == {"peft_type": "IA3"}
    assert Update.from_peft(tmp_path / "out").dense == ("x.ia3",)


@pytest.mark.parametrize("moment", ["fsync", "rename", "open"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, moment):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    update = Update.from_tensors(pair(Q), scaling={Q: 1.0})
    if moment == "open":
        monkeypatch.setattr(peft_directory, "open", full, raising=False)
    else:
        monkeypatch.setattr(peft_directory.os, moment, full)
    with pytest.raises(
        StorageError, match=r"out: cannot be written \(No space left on device\); nothing half-written"
    ) as caught:
        update.to_peft(tmp_path / "out")
    assert isinstance(caught.value, OSError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, moment):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(peft_directory.os, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Update.from_tensors(pair(Q), scaling={Q: 1.0}).to_peft(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path):
    code = (
        "import numpy as np, sys; from fedcore.updates import Update; from fedcore.errors import StorageError\n"
        "m = np.ones((256, 256), np.float32)\n"
        "update = Update.from_tensors({'m.lora_A.weight': m, 'm.lora_B.weight': m}, scaling={'m': 1.0})\n"
        "try: update.to_peft(sys.argv[1])\n"
        "except StorageError as error: print(error)"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    ran = subprocess.run(
        [sys.executable, "-B", "-c", code, str(tmp_path / "out")], preexec_fn=limit, capture_output=True, text=True
    )
    assert "out: cannot be written (File too large)" in ran.stdout, ran.stderr
    assert os.listdir(tmp_path) == []


def test_a_big_file_is_opened_without_being_read(tmp_path):
    path = tmp_path / "big"
    path.mkdir()
    (path / CONFIG).write_text("{}")
    size = 1 << 30
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with open(path / WEIGHTS, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    code = (
        "import sys, time, resource; from fedcore.updates import Update, Cohort\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "before, best = rss(), 1.0\n"
        "for _ in range(5):\n"
        "    start = time.perf_counter(); update = Update.from_peft(sys.argv[1])\n"
        "    best = min(best, time.perf_counter() - start)\n"
        "[(_, table)] = Cohort([update]).tables()\n"
        "assert update.tensors['w'].shape == (1 << 28,) and table.d == 1 << 28\n"
        "print(best, rss() - before)"
    )
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("resident memory is read from /proc, which this system lacks")
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    seconds, grown = map(float, ran.stdout.split())
    assert seconds < 0.05
    assert grown < 10e6


def test_a_second_adapter_in_or_under_a_directory_is_refused(tmp_path):
    both = written(tmp_path / "both", pair(Q))
    (both / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(FormatError, match=r"holds adapter_model.bin beside adapter_model.safetensors.*keep one"):
        Update.open(both)
    nested = written(tmp_path / "nested", pair(Q))
    # a trainer's own state, earlier states of one training and folders of anything else are no second adapter
    (nested / "training_args.bin").write_bytes(b"")
    written(nested / "checkpoint-500", pair(Q))
    (nested / "logs").mkdir()
    assert Update.open(nested).modules
    written(nested / "second", pair(Q))
    with pytest.raises(FormatError, match=r"nested: holds a second adapter in second; keep one adapter"):
        Update.from_peft(nested)
    best = written(tmp_path / "best", pair(Q))
    written(best / "checkpoint-500-best", pair(Q))
    with pytest.raises(FormatError) as caught:
        Update.from_peft(best)
    assert "best: holds a second adapter in checkpoint-500-best; keep one adapter" in str(caught.value)


def test_a_pattern_that_is_written_matches_its_module_alone():
    """`q` and `x.q`, whose path ends alike: PEFT's patterns match from any dot on."""
    tensors = {}
    for module, rank in (("q", 3), ("x.q", 2), ("y.q", 2)):
        tensors |= {f"{module}.lora_A.weight": np.ones((rank, 4), np.float32)}
        tensors |= {f"{module}.lora_B.weight": np.ones((5, rank), np.float32)}
    scaling = {"q": 4.0, "x.q": 1.0, "y.q": 1.0}
    update = Update.from_tensors(tensors, scaling=scaling, adapter_config={"r": 2, "lora_alpha": 2})
    assert Update.from_tensors(tensors, adapter_config=update.adapter_config).scaling == scaling
