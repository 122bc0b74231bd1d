# Everything runs in .venv; the first call installs what it needs (pinned in constraints.txt), the next one starts at once.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= auto
DEMO_READY := .venv/.ready-demo
DEV_READY := .venv/.ready-dev

.DEFAULT_GOAL := help
.PHONY: help setup demo report test test-all check format bench docs

help:           ## show this list
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' Makefile | expand -t 12

# expanded only when something must be installed: stops with one line if this Python cannot do it
check_python = $(if $(unable),$(error $(unable)))
unable = $(shell if command -v $(PYTHON) >/dev/null; then $(PYTHON) tools/install.py check 2>&1; \
	else echo "$(PYTHON) not found: install Python 3.11 or newer, with venv and pip"; fi)

$(DEV_READY): pyproject.toml constraints.txt tools/install.py
	$(check_python)
	@$(PYTHON) tools/install.py dev
	@touch $(DEMO_READY) $@

$(DEMO_READY): pyproject.toml constraints.txt tools/install.py
	$(check_python)
	@$(PYTHON) tools/install.py demo
	@touch $@

setup: $(DEV_READY)          ## create .venv with everything a developer needs

demo: $(DEMO_READY)          ## train, fuse and fine-tune small networks on scanned digits; writes runs/demo/report.html
	@$(BIN)/neurograft demo

report: $(DEV_READY)         ## pages with plots from the kept rows of all studies, into runs/report
	@for preset in small medium; do \
		$(BIN)/neurograft experiment report all --preset $$preset --output results/$$preset --to runs/report/$$preset || exit; \
	done

test: $(DEV_READY)           ## the fast tests, on every core
	@$(BIN)/pytest -q -n $(JOBS) -m "not slow"

test-all: $(DEV_READY)       ## every test, some minutes on two cores
	@$(BIN)/pytest -q -n $(JOBS) --dist worksteal

check: $(DEV_READY)          ## format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(DEV_READY)         ## rewrite the sources in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(DEV_READY)          ## time and memory beside concatenate-then-prune with Torch-Pruning
	@$(BIN)/python benchmarks

docs: $(DEV_READY)           ## these pages and the API from the docstrings as a site, into site/
	@$(BIN)/python tools/make_docs.py
