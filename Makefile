# Each target does its own set-up in .venv, the first time and when what it was made from changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.fedcore-ready

.PHONY: demo test builds proofs lint bench fuzz wheel clean

demo: $(READY)
	$(BIN)/fedcore demo

# A worker for each core, eight at most; a file's tests stay together, since they share what they build, and files stay in their
# order, since the few tests that compile for minutes would otherwise come last and leave workers idle.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
test: $(READY)
	$(PYTEST)

# What compiles the kernels anew: the wheel and each way to install it, sanitizers, 64-bit Arm, GPUs.
builds: $(READY)
	$(PYTEST) -m "builds and not slow"

# What is too long for every run, with its outcome in benchmarks/results.
proofs: $(READY)
	$(BIN)/python benchmarks/slow_tests.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.c csrc/*.h tests/native/*.c
	$(BIN)/mypy

# The peers pin old versions of shared packages, so they get an environment of their own. BENCHMARKS are names of files to run
# instead of all, and --slow, which adds the proofs about noise that take minutes.
bench: $(READY)
	test -x .venv-bench/bin/fedcore || { $(PYTHON) -m venv .venv-bench && \
	  .venv-bench/bin/pip install -q --disable-pip-version-check torch==2.13.0 pytest pytest-timeout hypothesis -e ".[bench]" && \
	  .venv-bench/bin/pip install -q --disable-pip-version-check --no-deps byzfl==0.0.11 && \
	  .venv-bench/bin/pip install -q --disable-pip-version-check scipy; }
	.venv-bench/bin/python benchmarks/run.py $(BENCHMARKS)

# By coverage, for as long as FUZZ_SECONDS each; the suite runs plain mutations for a few seconds.
FUZZ_SECONDS ?= 300
fuzz: $(READY)
	$(BIN)/pip install -q --disable-pip-version-check "atheris>=2.3"
	for target in message directory stored adapter_config run_config; do \
	  $(BIN)/python tests/fuzzing/run.py $$target --seconds $(FUZZ_SECONDS) || exit 1; done

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
	rm -rf $(VENV) .venv-bench fedcore/native/*.so build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
