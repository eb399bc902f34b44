# ddsmoothing: `make help` lists the targets. Needed: Python >= 3.11, make and, for the first call, a network, from which
# pip takes the packages, PyTorch among them (README says how large that is).
# pip's own settings (PIP_INDEX_URL, PIP_CACHE_DIR, ..) are honoured. With CI=true the versions of constraints-ci.txt
# are installed; users are not pinned.

SHELL := /bin/sh
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
OLD_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(or $(shell for p in $(CANDIDATES); do $$p $(OLD_ENOUGH) 2>/dev/null && echo $$p && break; done),python3)
BIN := .venv/bin
DATA ?= /usr/share/datasets/fashion-mnist
RELEASE ?=
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov --cov-report=term-missing:skip-covered

ifeq ($(CI),true)
CONSTRAINTS := constraints-ci.txt
export PIP_CONSTRAINT := $(CONSTRAINTS)
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo lint test test-all docs release-check assets clean

help:
	@echo "make demo      install into .venv and certify 200 real images; replaces ddsmoothing-demo/"
	@echo "make test      ruff, mypy and the tests but for the slow ones, with coverage"
	@echo "make test-all  the same with the slow tests"
	@echo "make lint      ruff and mypy alone"
	@echo "make docs      the site, from docs/ into site/; every link and every tutorial is checked"
	@echo "make release-check  build, install and try what would be uploaded; uploads nothing"
	@echo "make assets    remake the shipped images and models from the idx files in DATA ($(DATA))"
	@echo "make clean     remove .venv, caches and the demo's output"
	@echo "Another Python: make PYTHON=python3.12 demo"

demo: .venv/.package
	@rm -rf ddsmoothing-demo
	@$(BIN)/ddsmoothing demo --out ddsmoothing-demo

lint: .venv/.dev
	@echo "ruff ..." && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "mypy ..." && $(BIN)/mypy

test: lint
	@echo "pytest ..." && $(PYTEST) -m "not slow"

test-all: lint
	@echo "pytest, slow tests too ..." && $(PYTEST)

docs: .venv/.docs
	@rm -rf site jupyter_execute
	@echo "sphinx (about two minutes, mostly the tutorials) ..." && PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 \
	  $(BIN)/python -m sphinx -b html -E -a -q -W --keep-going -d build/doctrees docs site
	@$(BIN)/python tools/check_site.py site

release-check: .venv/.release
	@$(BIN)/python tools/release_check.py $(RELEASE)

assets: .venv/.package
	@$(BIN)/python tools/make_assets.py --data $(DATA)

clean:
	rm -rf .venv ddsmoothing-demo site docs/api docs/project jupyter_execute .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* htmlcov build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: what is installed is not installed again until pyproject.toml changes.
.venv/.made:
	@$(PYTHON) $(OLD_ENOUGH) || { \
	  echo "Python >= 3.11 is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

.venv/.package: .venv/.made pyproject.toml $(CONSTRAINTS)
	@echo "installing ddsmoothing (about two minutes, mostly PyTorch) ..."
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.dev: .venv/.package
	@echo "installing the development tools ..."
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@

.venv/.docs: .venv/.package
	@echo "installing what the site is made with ..."
	@$(BIN)/python -m pip install --quiet --group docs
	@touch $@

.venv/.release: .venv/.package
	@echo "installing what a release is made with ..."
	@$(BIN)/python -m pip install --quiet --group release
	@touch $@
