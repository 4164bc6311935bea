# flowdiff: `make help` lists the targets. Options of the program go in ARGS: make train ARGS="flow.n_flows=5 seed=1"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
LOGDIR ?=
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder
# what the tests compare with and no program imports; its own requirements (numpy < 2, CLIP, wandb) would not suit the rest
REFERENCES := k-diffusion==0.1.1.post1

.DEFAULT_GOAL := help
.PHONY: help install dev train dashboard test test-fast bench bench-guide bench-speed docs lint format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("flowdiff needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/references $(REFERENCES)
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-peers: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[peers]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed ## make .venv and install flowdiff in it

dev: $(VENV)/.installed-dev ## the same with what the tests need

train: install ## train the default (digits) on the CPU, and measure it
	$(BIN)/python -m flowdiff.train $(ARGS)

dashboard: install ## TensorBoard on the last sweep, or LOGDIR=FOLDER: ARGS="--port 6007"
	@$(BIN)/python -m flowdiff.dashboard $(LOGDIR) -- $(ARGS)

test: dev ## run all tests
	$(PYTEST) $(ARGS)

test-fast: dev ## run the tests that take a moment: less than 2 minutes
	$(PYTEST) -m "not slow" $(ARGS)

bench: $(VENV)/.installed-peers ## flowdiff beside other libraries, 2 min each: ARGS="--dataset mnist --seconds 600"
	$(BIN)/python -m experiments.benchmarks.flows $(ARGS)

bench-guide: install ## speed of the guide's flow, the default and the UNet, side by side: ARGS="--dataset mnist"
	$(BIN)/python -m experiments.benchmarks.guide $(ARGS)

bench-speed: dev ## what speed is made of: steps, other libraries' too, sampling, a run, the start: ARGS="--parts steps"
	$(BIN)/python -m experiments.speed $(ARGS)

docs: dev ## the documentation as a site, in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: dev docs ## ruff (lint and format), mypy, the order of the imports, and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: dev ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and builds; runs and .venv stay
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
