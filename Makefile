# Every target sets up its own environment when it is missing or the lock changed.
SHELL := /bin/bash  # macOS's make runs plain lines by itself, without the PATH below
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: run remake serve share test lint docs bench clean

run: $(READY)  ## the pipeline on the demonstration, ending with the result
	@if dvc status --quiet; then echo "Everything is up to date: nothing to do."; else dvc repro; fi
	@printf '\n%s\n\nThe page to read: data/report/index.html\n' "$$(cat data/report/result.txt)"

remake: $(READY)  ## the whole pipeline from nothing: trains, asks and searches again (over an hour)
	rm -rf data/*/answers data/evolve
	@dvc repro --force

serve: $(READY)  ## Prefect's UI on http://127.0.0.1:4200, a nightly run, runs to start there; ends with Ctrl-C
	@python -m flows.serve

share: $(READY)  ## take what collaborators pushed, run what is out of date, push it
	@python -m flows.share

test: $(READY)  ## linters, types and the whole test suite
	@$(MAKE) --no-print-directory lint
	@pytest -q

lint: $(READY)  ## ruff and mypy
	@ruff check --quiet
	@ruff format --check --quiet
	@mypy

docs: $(READY)  ## the documentation into .site, to be opened from there
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet
	@echo "file://$(CURDIR)/.site/index.html"

bench: $(READY)  ## answering, merging, candidate and evolution: their tables and JSON
	@for name in answering merging candidate evolution; do python benchmarks/$$name.py || exit 1; done

clean:  ## the environment; answers and models stay
	rm -rf $(VENV)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@pip install --quiet --disable-pip-version-check --constraint requirements.lock torch  # and the libraries that its build wants
	@pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
