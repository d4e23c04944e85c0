# From a bare clone, with Python 3.11 and make:
#   make demo            train, predict and serve on real images (DATA=./dogs for your own)
#   make test            run every test; `make test-fast` leaves out the slow ones
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?=

.PHONY: help install demo test test-fast lint types format check lock clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "transferapp needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

install: $(READY)  ## Build .venv with the pinned packages.

demo: $(READY)  ## Train, predict and serve on real images; DATA=DIR for your own.
	$(BIN)/python scripts/demo.py $(if $(DATA),"$(DATA)")

# Two processes that take whole files: a test is mostly one Python thread, but a process that it starts may take 2 GB.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## Run every test.
	$(PYTEST)

test-fast: $(READY)  ## Run the tests without training.
	$(PYTEST) -m "not slow"

lint: $(READY)  ## Check style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## Check types.
	$(BIN)/mypy

format: $(READY)  ## Format the code and apply automatic fixes.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test  ## Run everything that CI runs.

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: $(READY)  ## Resolve the version ranges into requirements/*.txt.
	$(LOCK) $(UPGRADE) pyproject.toml --extra dev --extra export --extra ray --output-file requirements/dev.txt
	$(LOCK) pyproject.toml --constraints requirements/dev.txt --output-file requirements/fit.txt
	$(LOCK) requirements/serve.in --constraints requirements/dev.txt --output-file requirements/serve.txt

clean:  ## Remove the environment and all build outputs.
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
