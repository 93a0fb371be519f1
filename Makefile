# `make demo` and `make test` create the environment by themselves; PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard agents/*.py backbones/*.py bench/*.py data/*.py envs/*.py referee/* runtime/*.py scripts/*.py skipgym/*.py testing/*.py) pyproject.toml
TYPED := build/typed

.PHONY: demo test check format docs clean

demo: $(VENV)/.installed
	$(BIN)/skipgym demo --out demo

test: check
	$(BIN)/pytest --numprocesses auto --dist worksteal

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --target $(TYPED) .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed
	$(BIN)/python docs/site_build.py build

clean:
	rm -rf $(VENV) build *.egg-info

# The tests see the installed copy, so it is made anew whenever a source changes; dependencies only with pyproject.toml.
$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	rm -rf build *.egg-info
	$(BIN)/pip install --quiet --no-deps --force-reinstall .
	touch $@

$(VENV)/.dependencies: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install ".[dev]"
	touch $@
