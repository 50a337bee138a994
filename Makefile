# `make demo` and `make test` work on a fresh machine with Python 3.11+ and pip; everything goes into .venv.
.PHONY: demo test test-slow check format
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_OPTIONS)

demo: $(VENV)/torch.stamp
	$(BIN)/pseudoword demo --output demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-slow: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/torch.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[torch]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[torch,eval,jax,dev]'
	touch $@ $(VENV)/torch.stamp
