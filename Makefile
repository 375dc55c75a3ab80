# `make demo` and `make test` are all the set-up there is: each makes .venv and installs into it first.
# torch goes first and pinned: where a CPU build of that version is at hand (pip's own settings), no
# CUDA libraries are drawn. Another build: make demo TORCH='torch==2.14.1'.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
EXTRAS ?= cpu,demo,dev
BIN := .venv/bin

.PHONY: demo test check bench clean

demo: .venv/installed
	$(BIN)/itmfeat demo

# The quick tests on two cores, then those that start clusters, browsers or LaTeX, or are killed.
test: .venv/installed check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"
	$(BIN)/python -m pytest -m slow

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python tests/benchmarks/bench_extract.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv
