# A newcomer's two commands: `make demo` and `make test`. Both create $(VENV) when it is missing.

VENV ?= .venv
# The interpreter the environment is made from: by default the first one that is new enough.
PYTHON ?=
# Peers the tests compare with. Installed alone and first: where the default wheel is a CUDA build of several gigabytes,
# give a CPU one, which is then kept, such as `make test TORCH=./torch-2.13.0+cpu-....whl`.
TORCH ?= torch==2.13.0
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-reliability bench lint format clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 26

demo: $(STAMP)-package ## pre-train MAE on Fashion-MNIST and evaluate it (5 minutes on 2 CPU cores)
	@$(BIN)/python tools/demo.py

test: $(STAMP)-test lint ## ruff and the test-suite
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist=loadgroup --ignore=tests/reliability $(PYTEST_ARGS)

test-reliability: $(STAMP)-test ## kills, damage, full disks, hostile files
	@$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist=loadfile tests/reliability $(PYTEST_ARGS)

# Steps allocate gigabytes: in huge pages that costs a tenth of the step less (docs/benchmarks.md).
bench: $(STAMP)-test ## a CPU step of MAE ViT-B/16 beside PyTorch's (docs/benchmarks.md)
	@GLIBC_TUNABLES=glibc.malloc.hugetlb=1 JAX_PLATFORMS=cpu \
	    $(BIN)/python tools/benchmark.py --batch_sizes=8 --windows=3 --seconds=6 --config.compute.scan=False

lint: $(STAMP)-test ## ruff check and ruff format --check
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .

format: $(STAMP)-test ## rewrite the sources as ruff formats them
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

clean: ## remove the environment and caches; runs and data stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(STAMP)-python:
	@echo "Creating the virtual environment $(VENV) ..."
	@PYTHON="$(PYTHON)" tools/create_venv.sh $(VENV)
	@touch $@

$(STAMP)-package: setup.py | $(STAMP)-python
	@echo "Installing mim-jax into $(VENV) (about 2 GB, a few minutes the first time) ..."
	@$(PIP) --editable .
	@touch $@

$(STAMP)-torch: | $(STAMP)-python
	@echo "Installing $(TORCH), a peer of the tests ..."
	@$(PIP) $(TORCH)
	@touch $@

$(STAMP)-test: setup.py $(STAMP)-torch | $(STAMP)-python
	@echo "Installing mim-jax and what its tests need into $(VENV) (a few minutes the first time) ..."
	@$(PIP) --editable '.[test]'
	@touch $@ $(STAMP)-package
