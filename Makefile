# One command each: `make serve` runs the gateway, `make test` runs the tests, `make bench` prints the table.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STATE   = $(or $(KPTEST_STATE),/var/tmp/kernelpool-test-$(shell id -u))
PYTEST  = set -o pipefail; KPTEST_STATE=$(STATE)-$(1) $(BIN)/pytest -p no:cacheprovider $(ARGS)

.PHONY: serve test test-engine test-gateways test-parts test-rest lint bench demos doctor constraints clean

serve: $(VENV)/.installed  ## Set up and run a gateway on 127.0.0.1 with a warm Python pool
	$(BIN)/kernelpool serve $(ARGS)

doctor: $(VENV)/.installed  ## Check what the sandboxes of this machine promise
	$(BIN)/kernelpool doctor

test: $(VENV)/.installed-dev  ## Set up and run the linters and all tests; with KPTEST=all also those that repeat others or take minutes
	@# Three side by side: what needs an engine; whole gateways; linters, parts, and the other whole gateways.
	@$(MAKE) --no-print-directory --keep-going --jobs=3 --output-sync=target lint test-engine test-gateways test-parts test-rest; \
	failed=$$?; \
	cd $(VENV); grep -hE '^(FAILED|ERROR) ' test-*.log; tail -qn 1 test-*.log; exit $$failed

test-engine:
	@$(call PYTEST,engine) -m engine tests/contract tests/e2e | tee $(VENV)/$@.log

test-gateways:
	@$(call PYTEST,gateways) -m 'not engine' tests/contract tests/e2e/test_[a-i]*.py | tee $(VENV)/$@.log

test-parts:
	@$(call PYTEST,parts) -m 'not engine' tests/test_*.py tests/api tests/unit tests/e2e/test_j*.py | tee $(VENV)/$@.log

test-rest:
	@$(call PYTEST,rest) -m 'not engine' tests/e2e/test_[k-z]*.py | tee $(VENV)/$@.log

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

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# uv takes seconds where pip takes minutes; pip knows indexes and proxies that uv does not.
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]' \
	  || $(BIN)/pip install --quiet --no-compile --editable '.[dev]'
	touch $@ $(VENV)/.installed

demos: $(VENV)/.installed-dev  ## Execute notebooks/ against the gateway of KERNELPOOL_URL and KERNELPOOL_TOKEN, and store the outputs
	$(BIN)/python notebooks/execute.py $(ARGS)

constraints: $(VENV)/.installed-dev  ## Newer exact versions of what images hold
	$(BIN)/python deploy/constraints.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
