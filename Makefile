# One command each: `make serve` runs the gateway, `make test` runs the tests, `make bench` prints the table.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: serve test lint bench doctor constraints clean

serve: $(VENV)/.installed  ## Set up and run a gateway on 127.0.0.1 with a warm Python pool
	$(BIN)/kernelpool serve $(ARGS)

doctor: $(VENV)/.installed  ## Check what the sandboxes of this machine promise
	$(BIN)/kernelpool doctor

test: $(VENV)/.installed-dev  ## Set up and run the linters and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest $(ARGS)

lint: $(VENV)/.installed-dev  ## Only the linters and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## Print the table of the README
	$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

constraints: $(VENV)/.installed-dev  ## Newer exact versions of what images hold
	$(BIN)/python deploy/constraints.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
