# Everything runs in .venv, made on first use and again when the requirements change.
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# The exact versions; empty: the newest of everything.
CONSTRAINTS ?= constraints.txt

PYTEST := $(PYTHON) -m pytest --numprocesses 2 --dist worksteal --durations 20

.PHONY: demo test test-slow test-outside lint docs figures sweep fuzz mutants clean

demo: $(INSTALLED)  ## the main job on real weights and pictures
	$(PYTHON) examples/demo.py

test: $(INSTALLED)  ## the tests to run before every commit: five minutes on 2 cores
	$(PYTEST)

test-slow: $(INSTALLED)  ## whole programs, pages, browsers, exports of real size
	$(PYTEST) -m "slow and not sweep"

test-outside: $(VENV)/.outside  ## other people's networks and trainers
	$(PYTEST) -m "outside and not sweep"

lint: $(INSTALLED)  ## ruff, mypy and the order of the floors
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports --no-cache --no-logo

docs: $(INSTALLED)  ## the site, in build/site; a warning is an error
	$(PYTHON) -m sphinx --fail-on-warning --keep-going --quiet --fresh-env docs build/site

figures: $(INSTALLED)  ## the pictures of README.md and docs/
	$(PYTHON) docs/figures.py

sweep: $(VENV)/.outside  ## every backbone (resumable; build/sweep.jsonl), docs/coverage.md from it, then the long tests
	$(PYTHON) -m tools.sweep --init center mean
	-$(PYTHON) -m tools.sweep 'timm/*'  # what does not run is a row of the table
	$(PYTHON) -m tools.sweep --counts '*'
	-$(PYTHON) -m tools.joint
	$(PYTHON) -m tools.sweep --table
	$(PYTHON) -m pytest -m sweep

fuzz: $(INSTALLED)  ## 11,900 mutated checkpoints, weight files, recipes and ONNX files
	$(PYTHON) -m pytest -m fuzz tests/test_fuzz.py

mutants: $(VENV)/.mutants  ## small faults put into the code: how many of them the tests catch
	$(PYTHON) -m tools.mutants

$(VENV)/.outside $(VENV)/.mutants: $(INSTALLED)
	$(PYTHON) -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[$(subst .,,$(@F))]'
	touch $@

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build
