# On a fresh machine `make run` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV ?= .venv
# One version that runs on laptops and on GPU machines. On a machine without a GPU,
# `make run TORCH_INDEX=https://download.pytorch.org/whl/cpu` fetches PyTorch's small CPU build.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# Tests that measure time run alone, after the others.
TEST_WORKERS ?= 2
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: run test lint types torture bench-loop clean

run: $(VENV)/.installed
	$(VENV)/bin/slipstream run

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -m 'not timed' -n $(TEST_WORKERS) --dist worksteal
	$(VENV)/bin/python -m pytest -m timed

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev
	$(VENV)/bin/mypy

torture: $(VENV)/.installed-dev
	$(VENV)/bin/python tests/helpers/torture.py

bench-loop: $(VENV)/.installed
	$(PIP) install -e '.[bench]'
	$(VENV)/bin/python benchmarks/loop_overhead.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) else "error: slipstream needs Python 3.11 or newer, $(PYTHON) is " + v + "; try make PYTHON=python3.12")'
	@command -v git >/dev/null || { echo "error: git is missing: apt-get install git" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: no venv module: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@echo "installing into $(VENV), once (PyTorch is the large part)"
	$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)'
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
