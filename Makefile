# MuProver's own commands. `make help` lists them.
GAME ?= tictactoe
SEEDS ?= 5
ARGS ?=
VENV := .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.ready-run
TEST_READY := $(VENV)/.ready-test

.DEFAULT_GOAL := help
.PHONY: help run test lint protos bench proof clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

run: $(RUN_READY)  ## Train GAME until its goal is met: make run GAME=tictactoe ARGS="--seed 1".
	@$(BIN)/muprover run --game $(GAME) $(ARGS)

test: $(TEST_READY) lint  ## Check style and types, and run all tests.
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: $(TEST_READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

protos: $(RUN_READY)  ## Rebuild muprover/v1 from protos/.
	@$(BIN)/uv pip install --quiet --python $(BIN)/python "grpcio-tools>=1.85,<2" setuptools
	@$(BIN)/python -c "import setup; setup.generate_protos()" && echo "muprover/v1 is up to date"

bench: $(TEST_READY)  ## Measure search, serving, self-play, replay and training (minutes).
	@for bench in tests/benchmarks/bench_*.py; do $(BIN)/python $$bench $(ARGS) || exit 1; done

proof: $(TEST_READY)  ## Train GAME to its goal with each of SEEDS seeds, and report every run.
	@$(BIN)/python tests/benchmarks/proof.py --game $(GAME) --seeds $(SEEDS) $(ARGS)

clean:  ## Remove the virtual environment and what was built; runs/ stay.
	rm -rf $(VENV) *.egg-info build dist .pytest_cache .mypy_cache .ruff_cache
	rm -f muprover/v1/*_pb2*

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit("MuProver needs Python 3.11 or newer; this is " + sys.version) if sys.version_info < (3, 11) else None'
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"

$(RUN_READY): pyproject.toml setup.py $(wildcard protos/muprover/v1/*.proto) | $(BIN)/uv
	@echo "installing MuProver (the first time: TensorFlow, some minutes on a slow line)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[all]"
	@touch $@

$(TEST_READY): $(RUN_READY)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[dev]"
	@touch $@
