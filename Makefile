# `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-dist faults mutants check lint type docs bench clean

# The environment; `make VENV=elsewhere …` keeps another one.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
# Without a GPU this wheel comes first, so that no CUDA packages are pulled in; `make TORCH=torch==2.11.0 …` takes another.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread a test process: pytest-xdist already fills the cores, and a process that is done takes tests of the others.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-9s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python found; install Python 3.11 or later, or write make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11; write make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	command -v nvidia-smi >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

setup: $(READY)  ## create the environment and install smet-train into it

demo: $(READY)  ## pre-train a small sparse LLaMA on the embedded data and show its report
	$(BIN)/smet-train +experiment=demo
	$(BIN)/smet-report --newest

test: $(READY)  ## the tests that need no process of their own: nearly all of them
	$(PYTEST) -m "not process"

test-all: test  ## those, then the ones that start real processes: torchrun, a shell, a wheel, new interpreters
	$(PYTEST) -m process

test-dist: $(READY)  ## those of several processes
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 1 tests/distributed

faults: $(READY)  ## every trial of tests/faults, about 20 minutes; prints tried, passed and worst case of each kind
	$(PYTEST) --faults=all --faults-out=outputs/faults.json --timeout=1800 tests/faults

mutants: $(READY)  ## one deliberate bug at a time, about 10 minutes: a test must fail for each
	$(BIN)/python -m tests.faults.mutants

check: lint type  ## what to run before a commit: lint, types, fast tests
	$(PYTEST) -q -m "not slow and not process"

lint: $(READY)  ## style, and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(READY)  ## mypy, strict
	$(BIN)/mypy

docs: $(READY)  ## write docs/configuration.md from the settings
	$(BIN)/python -m smet_train.config.reference docs/configuration.md

bench: $(READY)  ## time and memory against dense, about 20 minutes; tables, result.json and plots in outputs/
	$(BIN)/smet-bench speed
	$(BIN)/smet-bench memory

clean:  ## remove the environment and all caches; run folders stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
