"""Where torch is missing or its libraries do not load: what asks for Triton is refused, all else works."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from backend_calls import CALLS

import fedcore as fc

ROOT = Path(fc.__file__).parents[1]
#: what importing torch raises -> what is said of it
BROKEN = {
    'ModuleNotFoundError("No torch")': "No torch; install fedcore[train] for torch and triton",
    'ImportError("libtorch.so: undefined symbol")': "libtorch.so: undefined symbol; reinstall torch and triton",
    'OSError("libcudart.so.12: cannot open")': "libcudart.so.12: cannot open; reinstall torch and triton",
}


@pytest.fixture(scope="module", params=BROKEN, ids=["missing", "ImportError", "OSError"])
def broken(request, tmp_path_factory) -> tuple[dict[str, str], str]:
    """(an environment in which torch cannot be imported, what is said of it)."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(f"raise {request.param}\n")
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests")))
    known = {name: value for name, value in os.environ.items() if not name.startswith("FEDCORE_")}
    return known | {"PYTHONPATH": path}, BROKEN[request.param]


def run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "asked", [{"backend": "triton"}, {"FEDCORE_BACKEND": "triton"}], ids=["argument", "environment"]
)
def test_what_asks_for_triton_is_refused(broken, asked):
    environment, reason = broken
    (who,) = asked
    by_argument = json.dumps(asked if who == "backend" else {})
    found = json.loads(run(environment | asked, "-m", "backend_calls", by_argument))
    expected = dict.fromkeys(CALLS, f"BackendError: {who}: 'triton' is not available: {reason}")
    # of these no installation brings one
    for call, op in (("ExactSum", "exact_sum"), ("shamir_split",) * 2, ("shamir_combine",) * 2):
        expected[call] = f"BackendError: {op}: the triton backend has no such kernel; use 'c' or 'reference'"
    assert found == expected


def test_all_else_works(broken):
    assert json.loads(run(broken[0], "-m", "backend_calls", "{}")) == dict.fromkeys(CALLS, "works")


def test_every_op_with_a_backend_is_called():
    ops = {name for name in fc.ops.__all__ if "backend" in inspect.signature(getattr(fc.ops, name)).parameters}
    assert ops <= set(CALLS)


def test_the_doctor_tells(broken):
    environment, reason = broken
    found = json.loads(run(environment, "-c", "from fedcore.cli import main; main(['doctor', '--json'])"))
    assert found["engine_works"] is True
    assert found["backends"]["triton"] == reason
    assert f"triton: {reason}" in found["to_do"]
    assert found["gpus"] == []
    assert not any(line.startswith("GPU") for line in found["to_do"])
    assert "backend triton" in run(environment, "-c", "from fedcore.cli import main; main(['doctor'])")
