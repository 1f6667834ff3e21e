# The verbs of this house. Each stands alone: what it needs is set up first.
.DEFAULT_GOAL := help
SHELL := bash
BIN := .venv/bin
# Nothing younger than a week is locked: a bad release is usually withdrawn by then.
LOCK := .tools/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-annotate --exclude-newer "$$(date -u -d '7 days ago' +%F)" --upgrade

# Where this is set, as in many containers, each start of the agent would compile it again.
unexport PYTHONDONTWRITEBYTECODE

# As many tests side by side as were measured best on two cores; most of them wait for servers (docs/testing.md).
WORKERS ?= 4
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist worksteal
PART := tools/part.sh

.PHONY: help setup demo quick test test-system test-all coverage soak bench fmt check lock clean

help:
	@echo 'make setup  virtual environment and real servers, from the locks'
	@echo 'make demo   the whole failback on this machine'
	@echo 'make quick  lint, types, layers, unit and property tests: the inner loop'
	@echo 'make test   make quick, then contracts, faults and integration'
	@echo 'make test-system  the slowest: faults of servers, network, disk and hosts under load'
	@echo 'make coverage     lines and branches that the tests of make test reach'
	@echo 'make soak   capture killed hundreds of times under load; tens of thousands of histories restored, 500 into a real server'
	@echo 'make bench  measurements'
	@echo 'make fmt    format and mend what can be mended'
	@echo 'make check  lint, types, layers'
	@echo 'make lock   new pins, none younger than a week'
	@echo 'make clean  remove what setup and tests made'

setup:
	@tools/setup.sh

demo: setup
	$(BIN)/d5agent drill

quick: check
	@$(PART) 'unit and property tests' $(PYTEST) tests/unit tests/property $(ARGS)

test: quick
	@$(PART) 'contracts, faults and integration' $(PYTEST) -m "not system" \
		tests/contract tests/faults tests/integration $(ARGS)

test-system:
	@$(PART) 'set-up of the container' tools/setup.sh --with-container
	@$(PART) 'system tests' $(PYTEST) -m system $(ARGS)

test-all: test test-system

coverage: setup
	$(PYTEST) -m "not system" --cov --cov-report=term --cov-report=html $(ARGS)

soak: setup
	$(BIN)/python -m tests.soak $(SOAK_ARGS)
	HYPOTHESIS_PROFILE=soak $(BIN)/pytest tests/property tests/integration/test_restore_real_histories.py --timeout=3600 $(ARGS)

bench: setup
	@set -e; for script in bench/*.py; do [ ! -e "$$script" ] || $(BIN)/python "$$script"; done

fmt: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

check: setup
	@$(PART) 'lint' $(BIN)/ruff check .
	@$(PART) 'format' $(BIN)/ruff format --check .
	@$(PART) 'types' $(BIN)/mypy
	@MYPYPATH=bench $(PART) 'types of benchmarks' $(BIN)/mypy bench/*.py
	@MYPYPATH=bench/side $(PART) 'types of their sides' $(BIN)/mypy bench/side/*.py
	@$(PART) 'layers' $(BIN)/lint-imports

lock: setup
	$(LOCK) pyproject.toml -o requirements.lock
	$(LOCK) pyproject.toml --group test --group lint --group drill --group build -o requirements-dev.lock
	$(LOCK) tools/s3-server.in -o requirements-s3.lock
	echo uv | $(LOCK) --only-binary :all: - -o tools/uv.lock

clean:
	rm -rf .venv .tools build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
		.coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
