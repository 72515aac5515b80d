# Plain `make` lists what there is. Every target makes the virtual environment first, and again when
# requirements.txt has changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
INSTALLED := $(VENV)/installed
RUN := $(VENV)/bin/python

# Some containers set it; the tests start hundreds of processes, each of which would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test check lint bench chaos explore clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 16

run: $(INSTALLED) ## the fraud pipeline on this machine, with simulated traffic (DURATION=30 RATE=500 ends by itself)
	@$(RUN) -m app run $(if $(DURATION),--duration $(DURATION)) $(if $(RATE),--rate $(RATE))

test: lint ## all tests, in less than 10 minutes
	@scripts/install-browser
	@$(RUN) -m pytest tests -n 4 --dist loadfile --no-loadscope-reorder

check: lint ## what is quick: lint, types, and the tests without Ray or a broker
	@$(RUN) -m pytest tests/unit -n 2

lint: $(INSTALLED)
	@$(VENV)/bin/ruff check --quiet
	@$(VENV)/bin/ruff format --check --quiet
	@$(VENV)/bin/mypy --no-error-summary

bench: $(INSTALLED) ## throughput and latency beside a hand-written loop; writes the README's table
	@$(RUN) -m benchmarks

chaos: $(INSTALLED) ## breaks the running pipeline in every known way and counts what that did (FAULT=name MINUTES=30)
	@$(RUN) -m benchmarks.chaos $(if $(FAULT),--fault $(FAULT)) $(if $(MINUTES),--minutes $(MINUTES))

explore: $(INSTALLED) ## ten thousand random fault schedules in simulated time (SCHEDULES=500 SEED=0 for others)
	@$(RUN) -m tests.explore $(if $(SCHEDULES),--schedules $(SCHEDULES)) $(if $(SEED),--seed $(SEED))

clean: ## forget what `make run` has kept: the broker's log, checkpoints, the database
	@rm -rf .headrace

$(INSTALLED): SHELL := bash -o pipefail
$(INSTALLED): requirements.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo 'Python 3.11 is needed; install it, or name it: make PYTHON=/path/to/python3.11'; exit 1; }
	@echo 'Installing requirements.txt into $(VENV); the first time takes some minutes. A dot is a package:'
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --disable-pip-version-check --requirement requirements.txt \
	  | awk '/^(Collecting|Requirement)/ { printf "."; fflush() } END { print "" }'
	@touch $@
