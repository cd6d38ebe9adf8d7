"""The README's Python examples run as they stand, and its configuration is a valid one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedcore.federation.config_file import tomllib
from fedcore.lora import METHODS

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.S))
def test_examples_run(tmp_path, code):
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout


def test_the_configuration_is_valid(tmp_path):
    from fedcore.federation.config_file import load_config

    (code,) = re.findall(r"```toml\n(.*?)```", TEXT, re.S)
    (tmp_path / "federation.toml").write_text(code)
    config = load_config(tmp_path / "federation.toml")
    assert config.aggregation.rule == "krum"


def test_installing_names_every_package_that_the_metadata_does():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = TEXT[TEXT.index("Installing: ") :].lower()
    needed = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    assert [name for line in needed if (name := re.split(r"[>=; ]", line)[0]) not in said] == []


def test_the_tree_names_every_part_of_the_package():
    tree = TEXT[TEXT.index("## The tree") : TEXT.index("## Environment variables")]
    package = Path(__file__).parents[1] / "fedcore"
    files = [path.name for path in package.glob("*.py") if not path.name.startswith("__")]
    folders = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    named = set(re.findall(r"[a-z_]+(?:\.py|/)", tree))
    assert sorted({*files, *folders} - named) == []


def test_the_measured_table_is_that_of_the_result_files(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import table

    assert table.table() in TEXT
    assert table.failures_table() in TEXT
    assert TEXT.count(".json |") > 10
    assert not re.search(r"\b1 (attacks|cores)\b", TEXT)


def test_a_machine_without_avx512_has_a_column_of_its_own(monkeypatch):
    """Its figures stand beside those about the same, in their order; one that stands alone is an error."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import table

    record = table.load("gram")
    ours, theirs = (
        [("a", "1", "2", "gram"), ("a", "3", "4", "gram"), ("b", "5", "–", "gram")],
        [("a", "7", "2", "gram")],
    )
    monkeypatch.setattr(table, "rows_of", lambda folder: theirs if folder else ours)
    monkeypatch.setattr(table, "load", lambda name, folder="": record)
    lines = table.table().splitlines()
    assert lines[3:6] == [
        "| a | 1 | 2 | 7 | gram.json |",
        "| a | 3 | 4 |  | gram.json |",
        "| b | 5 | – |  | gram.json |",
    ]
    theirs.append(("c", "8", "9", "gram"))
    with pytest.raises(SystemExit, match="'c' on another machine alone"):
        table.table()


def test_the_table_of_lora_methods_is_that_of_its_runs_and_names_settings(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import table_lora_methods as table

    assert table.section() in TEXT
    assert f"{len(METHODS)} ways to aggregate LoRA adapters" in TEXT
    for name, settings in (("one pass", "size=24"), ("two passes", "size=24, passes=2")):
        assert f"randomized_sketch, {name}" in table.METHODS
        assert f"| randomized_sketch, {settings} |" in TEXT
