# Two commands: `make demo` and `make test`. Both set everything up on a machine that has Python 3.10 to 3.12 and nothing else.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= demo_output
# The suite runs one test process a core; more threads would only get in each other's way.
JOBS ?= 2
FUZZ_MUTATIONS ?= 5000
FUZZ_SEED ?= $(shell date +%Y%m%d)
FUZZ_OUT ?= fuzz_found
ZIP_DIR ?= dist
ZIP_VENV ?= .venv-zip
# MONAI Label pins numpy 1.26 and pydicom 2.4, so it has an environment of its own (8.5 GB, some 9 minutes).
LABEL_VENV ?= .venv-label
# nnU-Net v2 needs torchvision and much else (8 GB, some 5 minutes).
NNUNET_VENV ?= .venv-nnunet

.PHONY: help setup demo test suite docs fuzz gpu lint style types format clean zips test-zip label-env test-label viewer nnunet-env test-nnunet

help:
	@echo "make demo    pretrain on the built-in phantom, fine-tune on its livers, write a report to $(DEMO_DIR)/"
	@echo "make test    all checks: lint, types, tests, wheel"
	@echo "make fuzz    damaged files of every format, FUZZ_MUTATIONS of each, those that are found kept in $(FUZZ_OUT)/"
	@echo "make zips    pack all bundles for the model zoo to $(ZIP_DIR)/"
	@echo "make test-zip  the tests of the packed bundles in a fresh environment with nothing but what their metadata pin"
	@echo "make label-env   the environment of MONAI Label, in $(LABEL_VENV)/"
	@echo "make test-label  the bundles and the app label/ in running MONAI Label servers, in that environment"
	@echo "make viewer      a phantom CT and MR in Orthanc (Debian packages orthanc, orthanc-dicomweb), MONAI Label on it, OHIF in your browser"
	@echo "make nnunet-env  the environment of nnU-Net v2, in $(NNUNET_VENV)/"
	@echo "make test-nnunet  nnU-Net trains on from weights pretrained here, in that environment"
	@echo "make gpu     what is to be verified and measured on a GPU, in 8 minutes, to gpu_check/"
	@echo "make docs    the site, in build/docs/html/; a warning is an error"
	@echo "make lint    ruff and mypy alone"
	@echo "make format  let ruff format the tree"

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 10), f'Python 3.10 or newer is needed, found {sys.version}'"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev,docs]"
	touch $@

demo: setup
	$(BIN)/python tools/demo.py --out $(DEMO_DIR)

gpu: setup
	$(BIN)/python tools/gpu_check.py --minutes 8 --out gpu_check

lint: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python bundles/sync.py --check

types: setup
	PYTHON=$(BIN)/python bash tools/typecheck.sh

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: style
	$(MAKE) --jobs 2 types suite
	# these have limits of seconds of their own, so nothing runs beside them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cases --durations 10

# All tests but those of tests/cases.
suite: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 15 --ignore tests/cases

docs: setup
	$(BIN)/python -W ignore tools/build_docs.py

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --mutations $(FUZZ_MUTATIONS) --seed $(FUZZ_SEED) --out $(FUZZ_OUT)

zips: setup
	$(BIN)/python bundles/build.py --all --out $(ZIP_DIR)

# Downloads what `make test` only links to, so it takes some minutes.
test-zip: setup
	mkdir -p build
	$(BIN)/python bundles/build.py --all --pins > build/zip-requirements.txt
	$(PYTHON) -m venv --clear $(ZIP_VENV)
	$(ZIP_VENV)/bin/python -m pip install --quiet --requirement build/zip-requirements.txt
	ZIP_PYTHON=$(abspath $(ZIP_VENV))/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/bundles/test_built_zips.py

label-env: $(LABEL_VENV)/.installed

$(LABEL_VENV)/.installed: requirements-label.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_VENV)/bin/python -m pip install --quiet --requirement requirements-label.txt
	$(LABEL_VENV)/bin/python -m pip install --quiet --editable .
	touch $@

test-label: label-env
	$(LABEL_VENV)/bin/python -m pytest tests/label --durations 15

viewer: label-env
	$(LABEL_VENV)/bin/python tools/viewer.py

nnunet-env: $(NNUNET_VENV)/.installed

$(NNUNET_VENV)/.installed: requirements-nnunet.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(NNUNET_VENV)
	$(NNUNET_VENV)/bin/python -m pip install --quiet --requirement requirements-nnunet.txt
	$(NNUNET_VENV)/bin/python -m pip install --quiet --editable .
	touch $@

test-nnunet: nnunet-env
	OMP_NUM_THREADS=1 $(NNUNET_VENV)/bin/python -m pytest tests/networks/test_nnunet.py tests/networks/test_nnunet_adaptation.py tests/networks/test_nnunet_training.py --durations 5

clean:
	rm -rf build dist *.egg-info $(DEMO_DIR) .mypy_cache .ruff_cache .pytest_cache
