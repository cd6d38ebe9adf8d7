"""The ways to install fedcore: wheel from an sdist, editable, without a compiler, on each supported Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import kernel_harness
import pytest

pytestmark = pytest.mark.builds
ROOT = Path(__file__).parents[1]
SMOKE = """
import sys, numpy as np, fedcore as fc
from fedcore import backends
rows = np.arange(30, dtype=np.float32).reshape(3, 10)
assert fc.ops.weighted_sum(rows, [1, 1, 1], 3).tolist() == rows[1].tolist()
assert fc.rules.Krum(f=0)(rows).shape == (10,)
print(fc.__file__, "c" if backends.unavailable("c") is None else "reference")
"""


def run(command: list[str], **options) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    return result.stdout


#: the editable install is about paths: the objects of the wheel's build serve it, and what has none is compiled
COPYING = """#!/bin/sh
for word; do
  case "$before" in -c) stem=$(basename "$word" .c) ;; -o) made=$word ;; esac
  before=$word
done
[ -n "$stem" ] && found=$(find "$OBJECTS" -name "$stem.o") && [ -f "$found" ] && exec cp "$found" "$made"
exec cc "$@"
"""


def clean_copy(folder: Path) -> Path:
    """The files that git knows, so that nothing left in the tree leaks into a build."""
    copy = folder / "source"
    names = run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """An sdist, the wheel that was built from it, and the objects that are in it."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the packaging tests build from the files that git knows")
    folder = tmp_path_factory.mktemp("packaging")
    source = clean_copy(folder)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    run([*build, "--sdist", str(source)])
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    run([*build, "--wheel", str(unpacked)])
    (wheel,) = (folder / "dist").glob("*.whl")
    return {"wheel": wheel, "sdist": sdist, "source": source, "objects": unpacked / "build"}


def installed(wheel: Path, folder: Path) -> str:
    """Install into a folder of its own and run the smoke test from elsewhere; returns where it ran and on what."""
    run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(wheel)])
    return run(
        [sys.executable, "-W", "ignore", "-c", SMOKE], cwd=folder.parent, env={**os.environ, "PYTHONPATH": str(folder)}
    )


def test_sdist_and_wheel_hold_what_they_should(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "csrc/fedcore.h",
        "csrc/impl.h",
        "csrc/build.py",
        "csrc/gram_neon.c",
        "kernels/triton/gram.py",
        "LICENSE",
    } <= names
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = set(archive.namelist())
    assert re.search(r"cp310-abi3-", built["wheel"].name)
    assert {
        "fedcore/native/_fedcore.abi3.so",
        "fedcore/kernels/gram.py",
        "fedcore/py.typed",
        "fedcore/cli/demo.toml",
    } <= names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fedcore").rglob("*.py")}
    assert modules <= names, "a package is missing from pyproject.toml"
    assert {name.split("/")[0] for name in names} == {
        "fedcore",
        *(n for n in {x.split("/")[0] for x in names} if n.endswith(".dist-info")),
    }


def test_wheel_uses_the_stable_abi_only(built):
    pytest.importorskip("abi3audit", reason="abi3audit checks the stable ABI")
    run([sys.executable, "-m", "abi3audit", "--strict", str(built["wheel"])])


def test_wheel_from_sdist_works(built, tmp_path):
    where, backend = installed(built["wheel"], tmp_path / "site").split()
    assert where.startswith(str(tmp_path))
    assert backend == "c"


def test_kernels_of_the_wheel_agree_and_leave_no_secrets_on_a_stack(built, tmp_path):
    """Bit for bit on all ISAs. Sanitizers keep copies of what was on a stack: their builds leave that check out."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the harness needs it")
    kernel_harness.check(built["objects"], tmp_path / "harness", "-O3", "-Werror")


def test_without_a_compiler_the_package_works_on_its_reference(built, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(built["source"], source)
    env = {**os.environ, "CC": "false", "CXX": "false", "LDSHARED": "false"}
    run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)],
        env=env,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert installed(wheel, tmp_path / "site").split()[1] == "reference"


def test_editable_install_works_and_leaks_nothing(built, tmp_path):
    """In a fresh environment: the C kernels are in place, fedcore.kernels is found, `kernels` and `csrc` are not."""
    source = tmp_path / "source"
    shutil.copytree(built["source"], source)
    copying = {"CC": kernel_harness.script(tmp_path / "compiler", COPYING), "OBJECTS": str(built["objects"])}
    bin_folder = environment(sys.executable, tmp_path / "venv", "-e", str(source), **copying)
    where, backend = run([str(bin_folder / "python"), "-c", SMOKE], cwd=tmp_path).split()
    assert (Path(where), backend) == (source / "fedcore" / "__init__.py", "c")
    code = (
        "import importlib.util as find; print(find.find_spec('fedcore.kernels').origin);"
        "assert find.find_spec('kernels') is None and find.find_spec('csrc') is None"
    )
    found = run([str(bin_folder / "python"), "-c", code], cwd=tmp_path).strip()
    assert Path(found) == source / "kernels" / "triton" / "__init__.py"


def environment(python: str, folder: Path, *packages: str, **variables: str) -> Path:
    """The bin of a fresh environment that holds the packages, quickly: by this environment's pip, without bytecode."""
    run([python, "-m", "venv", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-compile"]
    run([*pip, "-q", "--disable-pip-version-check", *packages], env={**os.environ, **variables})
    return folder / "bin"


def interpreter(minor: int) -> str | None:
    """A Python 3.`minor` that runs: on the path, or one that pyenv has."""
    candidates = [shutil.which(f"python3.{minor}")]
    if shutil.which("pyenv"):
        versions = subprocess.run(
            ["pyenv", "versions", "--bare"], capture_output=True, text=True, check=False
        ).stdout.split()
        for version in (v for v in versions if v.startswith(f"3.{minor}.")):
            prefix = subprocess.run(
                ["pyenv", "prefix", version], capture_output=True, text=True, check=False
            ).stdout.strip()
            candidates.append(f"{prefix}/bin/python")
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_the_engine_installs_on_each_python(built, tmp_path, minor):
    """One abi3 wheel and its few dependencies, in a fresh environment; `fedcore doctor` says the engine works."""
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"no Python 3.{minor} on this machine")
    bin_folder = environment(python, tmp_path / "venv", str(built["wheel"]))
    assert run([str(bin_folder / "python"), "-c", SMOKE], cwd=tmp_path).split()[1] == "c"
    assert '"c"' in run([str(bin_folder / "fedcore"), "doctor", "--json"], cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_the_constraints_leave_what_each_python_can_install(tmp_path, minor):
    """All that `make demo` and `make test` install, found without being installed."""
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"no Python 3.{minor} on this machine")
    run([python, "-m", "venv", str(tmp_path / "venv")])
    pip = [str(tmp_path / "venv" / "bin" / "pip"), "install", "--dry-run", "--disable-pip-version-check"]
    found = run([*pip, "-c", str(ROOT / "constraints.txt"), f"{clean_copy(tmp_path)}[train,dev]"])
    assert "torch-2.13.0" in found.splitlines()[-1]
