# Coffre. `make help` lists the targets.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
ARGS ?=

# Tests and benchmarks start hundreds of processes: each module is compiled once, not by each of them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# WITHOUT_KERNEL=1 accepts a machine without a C compiler: coding then runs on zfec, many times slower.
INSTALLED := $(VENV)/installed$(if $(WITHOUT_KERNEL),-without-kernel)

$(INSTALLED): pyproject.toml setup_check.py hatch_build.py $(wildcard codec/csrc/*) $(wildcard codec/coffre/codec/*.c)
	@$(PYTHON) setup_check.py $(if $(WITHOUT_KERNEL),--without-kernel)
	@$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(WITHOUT_KERNEL),,COFFRE_REQUIRE_KERNEL=1 )$(BIN)/python -m pip install --quiet -e '.[dev,bench,demo]'
	@touch $@

.PHONY: setup
setup: $(INSTALLED)  ## make .venv with everything in it, once the machine has what that needs

.PHONY: run
run: setup  ## the main job: store real records, kill two nodes, read everything back (ARGS=--once ends by itself)
	@$(BIN)/coffre dev run $(ARGS)

# Two workers begin with half of the tests each, in the order of the files, so that clusters that tests share are few.
PYTEST := $(BIN)/python -m pytest -q -n $(or $(WORKERS),2) --dist worksteal

.PHONY: test
test: setup  ## every promise, within minutes
	$(PYTEST) $(ARGS)

.PHONY: test-all
test-all: setup  ## the same with more rounds and seeds, and what takes long
	COFFRE_LONG_TESTS=1 $(PYTEST) -m 'not soak and not etcd and not runbooks' $(ARGS)

.PHONY: lint
lint: setup  ## style and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: setup  ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The hook is of the branch that is checked out. One that somebody else has put there stays.
.PHONY: hook
hook:  ## have git look at layout, lint and sizes before each commit
	@hooks=$$(git rev-parse --git-path hooks) && mkdir -p "$$hooks" && hook="$$hooks/pre-commit" && \
	if [ -e "$$hook" ] && ! grep -q '\.ci/pre-commit' "$$hook"; then echo "$$hook is there already, and not of this project"; exit 1; fi && \
	printf '#!/bin/sh\nexec "$$(git rev-parse --show-toplevel)/.ci/pre-commit"\n' > "$$hook" && chmod +x "$$hook" && echo "$$hook runs .ci/pre-commit"

.PHONY: test-asan
test-asan: setup  ## the kernel's tests under AddressSanitizer and UBSan
	$(BIN)/python tests/asan/run.py

.PHONY: soak
soak: setup  ## kill -9 under load, losses of power, memory over thousands of reads (ROUNDS=2000)
	COFFRE_SOAK_ROUNDS=$(or $(ROUNDS),2000) $(BIN)/python -m pytest -q -m soak --timeout 0 $(ARGS)

.PHONY: test-etcd
test-etcd: setup  ## coordination on three real members of etcd; installs etcd-server when it is missing
	@command -v etcd >/dev/null || { apt-get update -qq && apt-get install -y -qq etcd-server; }
	$(PYTEST) -m etcd tests/integration/test_etcd.py $(ARGS)

.PHONY: test-runbooks
test-runbooks: setup  ## the run-books of docs/operations.md, executed as written; installs etcd-server when it is missing
	@command -v etcd >/dev/null || { apt-get update -qq && apt-get install -y -qq etcd-server; }
	$(PYTEST) -m 'runbooks or not runbooks' tests/runbooks $(ARGS)

.PHONY: test-fresh
test-fresh:  ## README's commands in a minimal Debian, as root; installs debootstrap when it is missing (ARGS=--suite=trixie)
	@command -v debootstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq debootstrap; }
	$(PYTHON) tests/fresh/run.py $(ARGS)

.PHONY: race
race: setup  ## 32 writers in four processes race for one key, many rounds (ROUNDS=500)
	COFFRE_RACE_ROUNDS=$(or $(ROUNDS),500) $(BIN)/python -m pytest -q -s -m soak --timeout 0 tests/integration/test_coordination.py $(ARGS)

.PHONY: sim
sim: setup  ## simulated clusters under faults, from seeds (SEEDS=0..299)
	@$(BIN)/python -m tests.simulation $(or $(SEEDS),0..299) $(ARGS)

.PHONY: shrink
shrink: setup  ## take away from a seed that fails whatever it does not take to fail (SEED=4711)
	@$(BIN)/python -m tests.simulation.shrink $(SEED) $(ARGS)

.PHONY: fuzz
fuzz: setup  ## requests, replies and files that are almost right, from seeds (SEEDS=0..499)
	COFFRE_FUZZ_SEEDS=$(or $(SEEDS),0..499) $(PYTEST) tests/fuzz $(ARGS)

.PHONY: test-mutants
test-mutants: setup  ## every deliberate bug of the protocol must be caught by a seed, a story or a unit test (ARGS="NAME --seeds 100")
	@$(BIN)/python -m tests.simulation.mutants $(ARGS)

.PHONY: chaos
chaos: setup  ## real nodes killed, paused, cut off, filled and damaged under load while the map changes, then checked (SECONDS=600, SEED=1)
	$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1) $(ARGS)

.PHONY: bench
bench: setup  ## measure the published figures; writes bench/results/latest.json
	@$(BIN)/coffre bench figures $(ARGS)

.PHONY: bench-repair
bench-repair: setup  ## measure repair; writes bench/results/repair.json
	@$(BIN)/coffre bench repair $(ARGS)

.PHONY: bench-micro
bench-micro: setup  ## time operations beside references, compare with bench/results/micro.json (ARGS=--strict, --large)
	@$(BIN)/coffre bench micro $(ARGS)

.PHONY: bench-micro-save
bench-micro-save: setup  ## the same, and make it the new baseline
	@$(BIN)/coffre bench micro --save $(ARGS)

.PHONY: proto
proto: setup  ## regenerate the committed stubs from the .proto files
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(abspath $(BIN))/python sh proto/generate.sh

.PHONY: clean
clean:  ## remove what the targets above made
	rm -rf $(VENV) .coffre .demo-data build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
