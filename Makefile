# Each target does its own set-up in .venv, the first time and when what it was made from changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.fedcore-ready

.PHONY: demo test lint bench wheel clean

demo: $(READY)
	$(BIN)/fedcore demo

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/pip install -q -c constraints.txt "flwr>=1.41,<1.42" "nvflare>=2.9,<2.10"
	$(BIN)/python benchmarks/run.py

wheel: $(READY)
	$(BIN)/python -m build --outdir dist .

$(READY): pyproject.toml constraints.txt $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "fedcore: error: $(PYTHON) is older than Python 3.10; run make PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[train,dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
