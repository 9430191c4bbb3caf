# The commands people run, which are the commands that CI runs.
#
#   make study   set everything up and explain the bundled model, no arguments and no network needed after installing
#   make test    the tests
#   make truth   the tests that train networks in full, which take long
#   make check   format, lint, types
#   make grade   methods against answer keys: what was quick before, compared with the committed table
#   make clean   remove what the above made
#
# PYTHON=python3.13 chooses an interpreter; ARGS="…" is handed to `microtome study` or to pytest.
# On Linux, PyPI's torch brings the CUDA libraries; TORCH="--index-url https://download.pytorch.org/whl/cpu" does not.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: study install test truth grade check clean

study: .venv/.installed
	$(BIN)/microtome study $(ARGS)

install: .venv/.installed-dev

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

truth: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m training $(ARGS)

grade: .venv/.installed-dev
	$(BIN)/microtome grade --fast --against benchmarks/results/grades.json $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit( \
	  f"expected Python 3.11 to 3.13, {sys.executable} is {v.major}.{v.minor}; run make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt torch==2.13.0 $(TORCH)
	$(PIP) -c constraints.txt --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -c constraints.txt --editable '.[dev]'
	@touch $@
