# Two commands: `make demo` and `make test`. Both set everything up on a machine that has Python 3.11 and nothing else.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= demo_output
# The suite runs one test process a core; more threads would only get in each other's way.
JOBS ?= 2

.PHONY: help setup demo test lint format clean

help:
	@echo "make demo    pretrain on the built-in phantom, evaluate, restore, write a report to $(DEMO_DIR)/"
	@echo "make test    all checks: lint, types, tests, wheel"
	@echo "make lint    ruff and mypy alone"
	@echo "make format  let ruff format the tree"

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 10), f'Python 3.10 or newer is needed, found {sys.version}'"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	touch $@

demo: setup
	$(BIN)/python tools/demo.py --out $(DEMO_DIR)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHON=$(BIN)/python bash tools/typecheck.sh
	$(BIN)/python bundles/sync.py --check

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations 15

clean:
	rm -rf build dist *.egg-info $(DEMO_DIR) .mypy_cache .ruff_cache .pytest_cache
