# One command each: `make serve` runs the gateway, `make test` runs the tests, `make bench` prints the table.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: serve test lint bench demos doctor constraints clean

serve: $(VENV)/.installed  ## Set up and run a gateway on 127.0.0.1 with a warm Python pool
	$(BIN)/kernelpool serve $(ARGS)

doctor: $(VENV)/.installed  ## Check what the sandboxes of this machine promise
	$(BIN)/kernelpool doctor

test: $(VENV)/.installed-dev  ## Set up and run the linters and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# Side by side, for most of them mostly wait: those of parts, and those of sandboxes and whole gateways.
	@trap 'kill 0' INT TERM; set -o pipefail; \
	$(BIN)/pytest -p no:cacheprovider $(ARGS) tests/api tests/unit tests/test_*.py >$(VENV)/side.log 2>&1 & side=$$!; \
	$(BIN)/pytest $(ARGS) tests/contract tests/e2e | tee $(VENV)/main.log; main=$$?; \
	wait $$side; side=$$?; cat $(VENV)/side.log; \
	grep -hE '^(FAILED|ERROR) ' $(VENV)/main.log $(VENV)/side.log; \
	tail -qn 1 $(VENV)/main.log $(VENV)/side.log; \
	[ $$main = 0 ] && [ $$side = 0 ]

lint: $(VENV)/.installed-dev  ## Only the linters and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## Print the table of the README
	$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[mcp]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demos: $(VENV)/.installed-dev  ## Execute notebooks/ against the gateway of KERNELPOOL_URL and KERNELPOOL_TOKEN, and store the outputs
	$(BIN)/python notebooks/execute.py $(ARGS)

constraints: $(VENV)/.installed-dev  ## Newer exact versions of what images hold
	$(BIN)/python deploy/constraints.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
