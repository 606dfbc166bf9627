# Two commands for a new machine:  make demo  and  make test.  Everything goes into .venv; set PYTHON for another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= dev

.PHONY: demo test lint types format fuzz bench install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

demo: install
	$(BIN)/cdo-ad demo --out demo

test: lint types
	$(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/lint-imports --no-cache

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

fuzz: install  # nightly: damaged and hostile images, tables and folders
	$(BIN)/python benchmarks/fuzz_inputs.py --inputs 100000

bench: install
	$(BIN)/python benchmarks/epoch.py
	$(BIN)/python benchmarks/metrics_scale.py

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache
