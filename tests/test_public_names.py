"""What a stranger finds of the package: by tab completion, by help() and by a slip of the pen."""

from __future__ import annotations

import pydoc
import rlcompleter
import subprocess
import sys

import pytest

import fedcore as fc


def in_a_new_interpreter(code: str) -> str:
    """What it prints, where no lazy name was looked up before."""
    run = subprocess.run([sys.executable, "-c", f"import fedcore as fc, sys\n{code}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_dir_lists_the_public_names_and_imports_nothing():
    public = "[name for name in dir(fc) if not name.startswith('__')]"
    assert (
        in_a_new_interpreter(
            f"before = set(sys.modules); assert {public} == sorted(fc.__all__)\nprint(*set(sys.modules) - before)"
        )
        == ""
    )
    assert "__version__" in dir(fc)


def test_tab_completion_offers_every_public_name():
    completer = rlcompleter.Completer({"fc": fc})
    found = {completer.complete("fc.", i) for i in range(len(fc.__all__) + 20)} - {None}
    assert {name.removeprefix("fc.").rstrip("()") for name in found} >= set(fc.__all__)


def test_help_shows_every_public_name():
    text = pydoc.plain(pydoc.render_doc(fc))
    assert [name for name in fc.__all__ if name not in text] == []
    classes = text[text.index("CLASSES") : text.index("FUNCTIONS")]
    assert "class Update(" in classes
    assert "class FedYogi(" in classes
    assert "aggregate(updates:" in text[text.index("FUNCTIONS") :]


def test_a_name_is_looked_up_once():
    assert in_a_new_interpreter("assert 'Update' not in vars(fc); fc.Update; print('Update' in vars(fc))") == "True"


def test_a_misspelt_name_is_answered_with_the_one_that_there_is():
    with pytest.raises(AttributeError, match=r"^module 'fedcore' has no attribute 'Acumulator'$") as caught:
        fc.Acumulator  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("Acumulator", fc)
