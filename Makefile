# Two commands are all a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
BENCHMARK_VENV ?= .venv-benchmark
BENCHMARK_INSTALL := $(BENCHMARK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow benchmark docs lint format clean

demo: $(VENV)/.palinka  ## train on the bundled model; ends by saying where the results are
	$(BIN)/palinka fit --config configs/quickstart.yaml
	@echo "for palinka and tensorboard by their names:   source $(VENV)/bin/activate"

test: $(VENV)/.test  ## install what the tests need and run them
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(VENV)/.test  ## the tests that the plain suite leaves out
	$(BIN)/python -m pytest -m slow

benchmark: $(BENCHMARK_VENV)/.benchmark  ## time against other libraries; benchmarks/results
	$(BENCHMARK_VENV)/bin/python benchmarks

docs: $(VENV)/.docs  ## build the book into build/site
	$(BIN)/mkdocs build --strict

lint: $(VENV)/.lint  ## style, types, docstrings, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_style.py

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

# Other libraries bring a hundred packages along, so they get their own environment. One that
# cannot be installed is left out of the tables, with the reason. The two without their dependencies
# require torchvision and an old nnsight, and use neither in a training step.
$(BENCHMARK_VENV)/.benchmark: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCHMARK_VENV)
	$(BENCHMARK_INSTALL) --upgrade "pip>=25.1"
	$(BENCHMARK_INSTALL) -c constraints.txt torch
	$(BENCHMARK_INSTALL) -c constraints.txt --editable .
	-$(BENCHMARK_INSTALL) -c constraints.txt --group benchmark
	-$(BENCHMARK_INSTALL) --no-deps dictionary_learning overcomplete
	@touch $@

$(VENV)/.docs: $(VENV)/.palinka
	$(PIP_INSTALL) --group docs
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP_INSTALL) --group lint
	@touch $@

clean:  ## remove the virtual environment and every tool's cache
	rm -rf $(VENV) .venv-benchmark .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
