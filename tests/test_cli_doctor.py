"""`fedcore doctor`: what works, what does not and what to do, in words and as one object."""

from __future__ import annotations

import json
import sys

import pytest

from fedcore import backends, ops
from fedcore.cli import main
from fedcore.cli.doctor import examine
from fedcore.federation import machine

# the package's attribute of this name is the command
doctor_module = sys.modules["fedcore.cli.doctor"]


def test_it_tells_all_and_exits_zero_where_the_engine_works(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for heading in (
        "engine",
        "machine",
        "backend reference",
        "backend c",
        "backend triton",
        "GPU",
        "versions",
        "cache",
    ):
        assert heading in shown


def test_json_holds_the_same(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["engine_works"] is True
    assert found["backends"]["reference"] == "works"
    assert found["versions"]["numpy"]
    if found["backends"]["c"] == "works":
        assert found["kernels"]["isa"] in found["kernels"]["available"]
        assert found["kernels"]["threads"] >= 1


@pytest.mark.filterwarnings("ignore:fedcore runs on its NumPy reference")
def test_what_is_missing_comes_with_what_to_do(capsys, monkeypatch, tmp_path):
    reasons = {"c": "no module; install a C compiler and reinstall fedcore"}
    monkeypatch.setattr(backends, "unavailable", reasons.get)
    known = machine.versions() | {"torch": None, "peft": None, "dp-accounting": None}
    monkeypatch.setattr(machine, "versions", lambda: known)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDCORE_CACHE", str(tmp_path / "file" / "cache"))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    todo = "\n".join(found["to_do"])
    assert "install a C compiler and reinstall fedcore" in todo
    assert "torch (training and GPU kernels), peft (adapters), dp-accounting (differential privacy); pip" in todo
    assert found["versions"]["cryptography"]
    assert "set FEDCORE_CACHE to a folder that can" in todo
    assert found["kernels"] is None


@pytest.mark.parametrize("broken", ["raises", "wrong"])
def test_it_exits_one_where_the_engine_does_not_work(capsys, monkeypatch, broken):
    def weighted_sum(*_arguments, **_options):
        if broken == "raises":
            raise OSError("no such library")
        import numpy as np

        return np.zeros(2)

    monkeypatch.setattr(ops, "weighted_sum", weighted_sum)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["engine_works"] is False
    assert ("no such library" if broken == "raises" else "expected [2.5, 5.0]") in found["to_do"][0]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FEDCORE_ISA", "sparc", "got 'sparc', expected one of"),
        ("FEDCORE_BACKEND", "foo", "got backend 'foo', expected one of"),
        ("FEDCORE_NUM_THREADS", "many", "FEDCORE_NUM_THREADS: got 'many', expected a whole number"),
    ],
)
def test_a_wrong_variable_is_a_finding_with_its_remedy(capsys, monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    todo = [line for line in found["to_do"] if said in line]
    assert todo
    assert all(line.endswith(f"; correct or unset {variable}") for line in todo)
    assert found["machine"]["cores"] >= 1
    assert main(["doctor"]) == 1
    assert "does not work" in capsys.readouterr().out


def test_triton_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(backends, "unavailable", lambda _: None)
    monkeypatch.setattr(doctor_module, "_gpus", list)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    found = examine()
    assert found["backends"]["triton"].startswith("installed, but there is no GPU; TRITON_INTERPRET=1")
    assert found["to_do"] == []
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter" in examine()["backends"]["triton"]
    monkeypatch.setattr(doctor_module, "_gpus", lambda: ["a GPU"])
    assert examine()["backends"]["triton"] == "works"


def test_brackets_survive_on_the_terminal(capsys, monkeypatch):
    known = machine.versions() | {"peft": None}
    monkeypatch.setattr(machine, "versions", lambda: known)
    monkeypatch.setenv("COLUMNS", "400")
    main(["doctor"])
    assert "pip install 'fedcore[train]'" in capsys.readouterr().out


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDCORE_CACHE", str(tmp_path / "own"))
    assert machine.cache_folder() == tmp_path / "own"
    assert examine()["cache"]["folder"] == str(tmp_path / "own")
    monkeypatch.delenv("FEDCORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert machine.cache_folder() == tmp_path / "xdg" / "fedcore"


def test_without_a_home_the_rest_is_told_and_what_to_set(capsys, monkeypatch):
    def nobody(_):
        raise RuntimeError("Could not determine home directory.")

    for name in ("FEDCORE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine.Path, "home", classmethod(nobody))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cache"] is None
    assert any("no home directory" in line and "set FEDCORE_CACHE" in line for line in found["to_do"])
    assert main(["doctor"]) == 0
