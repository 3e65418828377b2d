# Every target makes the virtual environment that it needs, so each works as the first command on a fresh clone.
#   make demo     label three synthetic clips and show the result
#   make test     all tests
#   make lint     ruff and mypy
#   make check    lint, then all tests: what a change must pass
#   make bench    the benchmark of the whole job
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes.
JOBS ?= auto

# torch is held to one version everywhere: in the install, and where pip builds sam2 (which asks for torch to do so).
# Older pips read PIP_CONSTRAINT for both, newer ones want PIP_BUILD_CONSTRAINT for builds.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint check bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/masksieve demo $(ARGS)

test: $(VENV)/.ready-test
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/end_to_end.py $(ARGS)

clean:
	rm -rf build dist demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "expected Python 3.11 or newer, got $$($(PYTHON) --version 2>&1); run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is as new as the files that say what to install, so an environment that is up to date is left alone.
$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing masksieve into $(VENV) (one to four minutes)"
	@$(BIN)/python -m pip install -qq --editable .
	@touch $@

$(VENV)/.ready-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing masksieve into $(VENV) (one to four minutes)"
	@$(BIN)/python -m pip install -qq --editable '.[test]'
	@touch $@ $(VENV)/.ready

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing masksieve into $(VENV) (one to four minutes)"
	@$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@ $(VENV)/.ready-test $(VENV)/.ready
