# Two commands are all a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint format clean

demo: $(VENV)/.palinka  ## train on the bundled model; ends by saying where the results are
	$(BIN)/palinka fit --config configs/quickstart.yaml

test: $(VENV)/.test  ## install what the tests need and run them
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(VENV)/.test  ## the tests that the plain suite leaves out
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.lint  ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"

# torch comes first and alone: with it there, nothing else pulls another build of it.
$(VENV)/.palinka: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.palinka
	$(PIP_INSTALL) --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP_INSTALL) --group lint
	@touch $@

clean:  ## remove the virtual environment and every tool's cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
