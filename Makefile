# Every target sets up .venv first and does nothing else than its line in `make help` says.
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all check bench lock clean
SHELL := /bin/bash

BIN := .venv/bin
STAMP := .venv/.installed
TORCH := torch==2.13.0
# processes that the tests share; each may start a Ray cluster of its own
JOBS ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Create or update .venv from pyproject.toml and constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@for python in python3.11 python3; do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	        2>/dev/null; then echo "Setting up .venv with $$($$python --version)"; \
	        exec "$$python" -m venv .venv; fi; \
	done; \
	echo "make: expected Python 3.11 or newer with its venv module, found none as python3.11" \
	    "or python3; install it (Debian: apt-get install python3 python3-venv)" >&2; exit 1
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## Run the main job on synthetic data: local Ray, SQLite MLflow
	$(BIN)/explorer run demo

test: $(STAMP) ## Run the tests, without the slow, GPU and cluster ones
	$(BIN)/python -m pytest -m "not slow and not gpu and not cluster" -n $(JOBS) --dist loadfile

# pytest exits with 5 when nothing was collected.
test-all: $(STAMP) ## Run the tests that `make test` leaves out, as far as this machine can
	$(BIN)/python -m pytest -m "slow or gpu or cluster" || [ $$? -eq 5 ]

check: $(STAMP) ## Lint, formatting, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## Run the benchmarks
	$(BIN)/python tests/benchmarks/run.py

lock: $(STAMP) ## Write the installed versions to constraints.txt
	@set -o pipefail; { \
	    echo "# Every version that the tests ran with. Written by: make lock"; \
	    $(BIN)/python -m pip freeze --exclude-editable | grep -v -e ' @ ' -e '://' \
	        | sed -E 's/\+[^ ]*$$//'; \
	} > constraints.tmp && mv constraints.tmp constraints.txt
	@touch $(STAMP)

clean: ## Remove .venv, caches and build output; runs/ stays
	rm -rf .venv build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache \
	    .import_linter_cache .hypothesis
	find explorer search_spaces trainables tests -type d -name __pycache__ -prune -exec rm -rf {} +
