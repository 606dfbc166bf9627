# Two commands for a new machine:  make demo  and  make test.  Everything goes into .venv; set PYTHON for another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= dev
LOCK ?=  # a file of requirements/ : versions and hashes as CI has them

.PHONY: soak demo test lint types format fuzz kills package audit sbom bench install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	test -z "$(LOCK)" || $(BIN)/python -m pip install --quiet --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

demo: install
	$(BIN)/cdo-ad demo --out demo

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile  # a module's runs and exports are made once

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

kills: install  # nightly: commands killed at random moments
	$(BIN)/python benchmarks/kills.py --kills 200

package: install  # wheel and sdist; the wheel is installed in a clean environment and runs the demo from there
	rm -rf dist .venv-wheel
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet "$$(ls dist/*.whl)[train,evaluate]"
	cd dist && ../.venv-wheel/bin/cdo-ad demo --quick --out demo && rm -rf demo

audit: install  # known faults of the dependencies, and their licences
	$(BIN)/python -m pip install --quiet pip-audit pip-licenses
	mkdir -p dist
	$(BIN)/pip-licenses --format=markdown --order=license --output-file=dist/licences.md
	$(BIN)/pip-audit --skip-editable

sbom: install  # what a release is made of, CycloneDX
	$(BIN)/python -m pip install --quiet cyclonedx-bom
	mkdir -p dist
	$(BIN)/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --output-file dist/sbom.json

bench: install
	$(BIN)/python benchmarks/epoch.py
	$(BIN)/python benchmarks/metrics_scale.py

soak: install  # nightly: the server under load, killed fifty times and then left to run; RUN names a run folder
	$(BIN)/python benchmarks/serve_load.py $(RUN) --kills 50
	$(BIN)/python benchmarks/serve_load.py $(RUN) --soak 30

clean:
	rm -rf $(VENV) .venv-wheel dist demo .mypy_cache .ruff_cache .pytest_cache
