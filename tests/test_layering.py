"""Nothing imports upward: the layers of the house, read from the imports of every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fedcore

ROOT = Path(__file__).parents[1]

#: what each layer may import of fedcore at the top of a file; a later layer may import every earlier one it names
BOTTOM = {
    *{"errors", "dtypes", "quantized", "encoding", "rowtable", "expansion", "lock", "backends", "factors"},
    *{"gaussian_table", "numbers"},
}
DATA = BOTTOM | {"ops", "updates"}
METHODS = DATA | {"rules", "lora", "privacy"}
ENGINE = METHODS | {"engine", "accumulator"}
CLIENTS = ENGINE | {"clients", "attacks"}
ALLOWED = {
    "errors": set(),
    "numbers": {"errors"},
    "dtypes": {"errors", "numbers"},
    "quantized": {"errors", "numbers", "dtypes"},
    "encoding": {"dtypes", "quantized"},
    "rowtable": {"errors", "dtypes", "quantized", "encoding"},
    "expansion": set(),
    "lock": {"errors"},
    "gaussian_table": {"errors"},
    "factors": {"dtypes"},
    "backends": {"errors", "numbers"},
    "reference": {"errors", "dtypes", "rowtable", "expansion", "factors", "gaussian_table"},
    "native": {"errors", "dtypes", "rowtable", "expansion", "factors", "gaussian_table"},
    "kernels": {"errors", "gaussian_table"},
    "ops": BOTTOM | {"reference"},
    "updates": DATA,
    "rules": METHODS - {"privacy"},
    "lora": METHODS - {"privacy"},
    "privacy": METHODS - {"rules"},
    "secagg": METHODS - {"rules"},  # the public name of privacy.secagg
    "engine": ENGINE,
    "accumulator": ENGINE,
    "clients": CLIENTS,
    "attacks": CLIENTS,
    "federation": CLIENTS | {"federation"},
    "report": CLIENTS | {"federation", "report"},
    "cli": CLIENTS | {"federation", "report", "cli", "native"},
}
#: packages outside the standard library that only these layers may import
OUTSIDE = {
    "torch": {"kernels", "clients", "ops", "rules", "updates", "cli"},  # all but kernels and clients: on request
    "triton": {"kernels"},
    "transformers": {"clients"},
    "peft": {"clients"},
    "bitsandbytes": {"clients"},
    "typer": {"cli"},
    "matplotlib": {"report"},
    "rich": {"cli", "report"},
    "pydantic": {"federation"},
    "datasets": {"federation"},
    "dp_accounting": {"privacy"},
    "cryptography": {"privacy"},
}


def files() -> list[tuple[str, Path]]:
    found = [
        (path.relative_to(ROOT / "fedcore").parts[0].removesuffix(".py"), path)
        for path in (ROOT / "fedcore").rglob("*.py")
    ]
    return found + [("kernels", path) for path in (ROOT / "kernels" / "triton").glob("*.py")]


def origin(name: str) -> str:
    """The module that a name of the package root comes from."""
    if name not in fedcore.__all__:
        return "fedcore" if name == "__version__" else f"fedcore.{name}"
    found = getattr(fedcore, name)
    return found.__name__ if isinstance(found, ModuleType) else found.__module__


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            assert "fedcore" not in found, f"{path}: import fedcore hides what of it is used; import that by name"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "fedcore":
                found |= {origin(alias.name) for alias in node.names}
            else:
                found.add(node.module or "")
    return found


@pytest.mark.parametrize(
    ("layer", "path"), files(), ids=lambda v: str(v.relative_to(ROOT)) if isinstance(v, Path) else v
)
def test_imports_point_downward(layer, path):
    if layer == "__init__":
        return  # the package itself re-exports, and imports what is above the ops only on first use
    assert layer in ALLOWED, f"{path}: a layer that the house does not have"
    check_imports(path, layer)


def check_imports(path: Path, layer: str) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "fedcore" and len(parts) > 1:
            assert parts[1] in ALLOWED[layer] | {layer}, f"{path} imports {name}"
        elif parts[0] in OUTSIDE:
            assert layer in OUTSIDE[parts[0]], f"{path} imports {name}"


@pytest.mark.parametrize(
    ("layer", "line", "named"),
    [
        ("ops", "from fedcore import aggregate", "fedcore.engine"),
        ("updates", "from fedcore import rules", "fedcore.rules"),
        ("rules", "from fedcore import FedAdam", "fedcore.federation"),
        ("errors", "from fedcore import bf16", "fedcore.dtypes"),
        ("ops", "import fedcore", "by name"),
        ("ops", "import torch, triton", "triton"),
    ],
)
def test_a_public_name_counts_as_the_module_that_it_comes_from(tmp_path, layer, line, named):
    (tmp_path / "file.py").write_text(line)
    with pytest.raises(AssertionError, match=named):
        check_imports(tmp_path / "file.py", layer)


def test_contributing_lists_every_layer():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    line = text[text.index("- Layers point downward") : text.index("- Files of")]
    groups = [re.split(r",\s+| \| ", group) for group in re.findall(r"`(.*?)`", line, re.S)]
    assert sorted(groups[0]) == sorted(BOTTOM)
    assert sorted(name for group in groups for name in group) == sorted(set(ALLOWED) - {"secagg"})


def test_reference_imports_numpy_only():
    for path in (ROOT / "fedcore" / "reference").glob("*.py"):
        outside = {name.split(".")[0] for name in imports(path)} - {"fedcore"}
        assert outside - sys.stdlib_module_names <= {"numpy"}, path


def test_import_is_quick_and_light():
    """`import fedcore` brings in neither torch nor transformers and takes under 0.3 s (best of five)."""
    code = (
        "import sys, time; start = time.perf_counter(); import fedcore; took = time.perf_counter() - start;"
        "heavy = {'torch', 'transformers', 'peft', 'triton', 'pydantic', 'typer', 'matplotlib', 'cryptography'};"
        "heavy &= set(sys.modules);"
        "print(took, *heavy)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(5)
    ]
    assert all(len(run) == 1 for run in runs), f"import fedcore loads {runs[0][1:]}"
    assert min(float(run[0]) for run in runs) < 0.3


def test_there_is_no_package_called_kernels():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_cores_are_counted_in_one_place():
    found = {path.name for _, path in files() if re.search(r"sched_getaffinity\(0\)|cpu_count", path.read_text())}
    assert found == {"rows.py"}, "use fedcore.ops.rows.available_cores"
