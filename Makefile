# Each target sets up what it needs by itself: it finds a Python, makes .venv, installs when pyproject.toml or constraints.txt
# changed, and runs. Another interpreter: make test PYTHON=/path/to/python3.12. Another place: make test VENV=/tmp/venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
# Test processes. Each is held to one thread, so that they do not fight for the cores.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
DEMO_OUT ?= out/demo
DEMO_SEEDS ?= 5

.PHONY: help demo test lint types format bench docs docs-serve clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.for-demo ## Audit a real data set with label errors, and write the report to out/demo
	@rm -rf $(DEMO_OUT)
	$(BIN)/imprint audit examples/data/notmnist.parquet --target label --seeds $(DEMO_SEEDS) --out $(DEMO_OUT)
	@printf '\nThe report: %s\n' "$$(cd $(DEMO_OUT) && pwd)/report.html"

test: lint ## Lint, check types, and run every test, doctest and code block of the docs
	OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 $(BIN)/python -m pytest tests src/imprint -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.for-dev ## Check format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.for-dev ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(VENV)/.for-dev ## Run the benchmarks (keep the machine quiet meanwhile)
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

docs: $(VENV)/.for-dev ## Build the documentation to site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation: $$PWD/site/index.html"

docs-serve: $(VENV)/.for-dev ## Show the documentation at http://127.0.0.1:8000 and follow changes
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs serve

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) out site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. 3.11 is tried first: machines without a GPU may hold PyTorch's CPU build for it.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$("$$python" --version)"; exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "Imprint needs Python 3.11, 3.12 or 3.13 with the venv module$(if $(PYTHON),; $(PYTHON) is not one)." >&2; \
	echo "Install one (Debian: apt-get install python3.11-venv), or name it: make demo PYTHON=/path/to/python3.12" >&2; exit 1

# For the demo: the package with images and text, nothing for development.
$(VENV)/.for-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Imprint and what it needs into $(VENV) (once; some minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[image,text]'
	@touch $@

$(VENV)/.for-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Imprint and what its development needs into $(VENV) (once; some minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.for-demo
