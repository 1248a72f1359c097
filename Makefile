# What one does with Winnow. CI calls `make test` and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# The library of Winograd convolutions is compiled; what it is compiled from, but not its Python, which is used as it lies there.
COMPILED := $(VENV)/winograd
SOURCES := winograd/pyproject.toml winograd/CMakeLists.txt $(wildcard winograd/cmake/*) \
	$(shell find winograd/csrc -name tests -prune -o -type f -print)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format up migrate bench clean

help:  ## Show what can be made
	@awk 'BEGIN {FS = ":.*## *"} /^[a-z]+:.*##/ {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Winnow needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[service,worker,embedded,test,check,build]' --editable ./client
	touch $(STAMP)

$(COMPILED): $(STAMP) $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --constraint constraints.txt --editable ./winograd
	$(BIN)/python -c 'import winograd; print(winograd.info())'
	touch $(COMPILED)

setup: $(STAMP) $(COMPILED)  ## Make the virtual environment and install everything into it

demo: setup  ## Train a small CNN, compress it over HTTP, and use the file that comes back
	$(BIN)/python -m demo.run

test: setup  ## Run all tests, against a real Redis, a real PostgreSQL and SQLite
	$(BIN)/python -m pytest

check: setup  ## Lint, type-check, and check who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict client/winnow
	$(BIN)/mypy --strict winograd/winograd winograd/cmake
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/*.Dockerfile

format: setup  ## Format the code
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

up: setup  ## Run the whole stack on http://127.0.0.1:8000 until Ctrl-C
	$(BIN)/winnow-server up

migrate: setup  ## Bring the database to the newest tables
	$(BIN)/winnow-server migrate

bench: setup  ## Measure: method P, jobs, HTTP, uploads, faults, Winograd (needs WINNOW_DATA; takes hours)
	$(BIN)/python -m benchmarks.all

clean:  ## Remove the virtual environment and what tests left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build winograd/build demo-output
