# Everything runs in .venv, which `make setup` fills from requirements/lock.txt.

PYTHON ?= python3.11
# Where a CPU build of torch is, if pip does not find one by itself: a URL or a folder.
TORCH_INDEX ?=
# The release of vLLM that make test-release runs with.
RELEASE ?= 0.33.0
# Arguments of the command a target runs: make serve ARGS="--port 8001", make demo ARGS="--seed 2".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.headway-setup
LOCK := requirements/lock.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo serve bench test test-live test-parallel test-release lint docs clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 \t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP) ## Install everything into .venv (about 2.3 GB), unless it is there.

$(STAMP): $(LOCK) pyproject.toml
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" VENV="$(VENV)" LOCK="$(LOCK)" scripts/setup.sh
	@touch $@

demo: setup ## Serve a real model with stock vLLM and with Headway, and compare.
	$(BIN)/headway demo $(ARGS)

serve: setup ## Serve the small model on this machine, on port 8000.
	$(BIN)/headway serve smollm2 $(ARGS)

bench: setup ## Measure what a decision costs.
	$(BIN)/python bench/plan.py $(ARGS)

test: setup ## Run everything but the long live tests.
	$(BIN)/python -m pytest -m "not live" -n 2 $(ARGS)

test-live: setup ## Run the live tests: a real server, real clients.
	$(BIN)/python -m pytest -m "live and not parallel" $(or $(ARGS),tests/live)

test-parallel: setup ## Run the tests of several engines: data and tensor parallel.
	$(BIN)/python -m pytest -m parallel $(or $(ARGS),tests/live)

test-release: setup ## Run the conformance tests with another vLLM: RELEASE=0.33.0.
	$(BIN)/python scripts/try_release.py $(RELEASE) $(ARGS)

lint: setup ## Check style, types and import direction.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check_experiments.py

docs: setup ## Build the documentation into site/, which works without a network.
	$(BIN)/python scripts/docs/docs_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## Remove what the other targets made, .venv too.
	rm -rf $(VENV) .releases build dist src/*.egg-info demo-out verify-out site
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
