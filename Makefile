# Works as root and as a plain user, from a bare checkout: every target installs what it needs into .venv first.
# `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --warn-undefined-variables

VENV := .venv
BIN := $(VENV)/bin
# The models on torch have an environment of their own: it is large, and holds an older numpy.
CHATTERBOX_VENV := .venv-chatterbox
CHATTERBOX_BIN := $(CHATTERBOX_VENV)/bin
OLDEST_PYTHON := 3.11
NEW_ENOUGH := import sys; sys.exit(sys.version_info < tuple(map(int, "$(OLDEST_PYTHON)".split("."))))
# The first that runs and is new enough: a version manager's shim may be on the path and still not run.
# 3.11 comes first because the tests run on it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done; true)

PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version $(OLDEST_PYTHON) --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-emit-package chatterbox-gateway --custom-compile-command "make lock"

# What the tests run besides Python, as command=Debian package.
TEST_TOOLS := nginx=nginx cc=build-essential prometheus=prometheus prometheus-alertmanager=prometheus-alertmanager \
	npm=npm chromium=chromium openssl=openssl curl=curl unshare=util-linux ip=iproute2 systemd-analyze=systemd
# Debian puts servers where a plain user's path does not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

# Options for the command behind a target: make up ARGS="--workers 4", make bench ARGS="load --rate 3".
ARGS ?=
CHATTERBOX_ARGS ?=

CHATTERBOX_PIP := $(CHATTERBOX_BIN)/python -m pip -qq --disable-pip-version-check --no-input
# Upstream's packages warn at import. Two threads of OpenMP on a busy machine spin: ten times slower than one.
CHATTERBOX_PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(CHATTERBOX_BIN)/python -W ignore -m pytest -W ignore -q

.PHONY: help up test test-chatterbox full-parity soak check tools lock options wheel bench dashboards pictures clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1#\2/p' Makefile | column -t -s '#'

up: $(VENV)/.base $(VENV)/.package  ## start a gateway and its workers on this machine; Ctrl-C stops them
	@exec $(BIN)/python -m deploy.up $(ARGS)

test: check tools  ## check, then run all tests
	@$(BIN)/python -m pytest -q --durations=10 $(ARGS)
	@$(MAKE) test-chatterbox

test-chatterbox: $(CHATTERBOX_VENV)/.ready $(CHATTERBOX_VENV)/.package  ## the tests of the models on torch alone
	@$(CHATTERBOX_PYTEST) --durations=10 tests/chatterbox $(CHATTERBOX_ARGS)

full-parity: $(CHATTERBOX_VENV)/.ready $(CHATTERBOX_VENV)/.package  ## compare with upstream at the published size; a quarter of an hour
	@$(CHATTERBOX_PYTEST) -s tests/chatterbox/full_parity.py $(CHATTERBOX_ARGS)

soak: $(VENV)/.test $(VENV)/.package  ## the long proofs in full: chaos, hang-ups, overload, a million requests
	@exec $(BIN)/python -m pytest -q -s --soak tests/soak $(ARGS)

check: $(VENV)/.test $(VENV)/.package  ## format, lint, types and import walls, without a test
	@echo "checking style, types and import walls ..."
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

tools:  # the programs in TEST_TOOLS; a missing one is a failure, never a skipped test
	@missing=
	for tool in $(TEST_TOOLS); do command -v "$${tool%%=*}" >/dev/null || missing+=" $${tool#*=}"; done
	if [ -z "$$missing" ]; then exit 0; fi
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "The tests need these Debian packages, and only root can install them: sudo apt-get install$$missing" >&2
		exit 1
	fi
	echo "installing the Debian packages$$missing ..."
	export DEBIAN_FRONTEND=noninteractive
	log=$$(mktemp)
	apt-get -qq update >"$$log" 2>&1 && apt-get -qq install --no-install-recommends $$missing >>"$$log" 2>&1 \
		|| { cat "$$log" >&2; exit 1; }
	rm -f "$$log"

lock: $(VENV)/.test  ## write requirements/*.txt anew from pyproject.toml; ARGS=--upgrade for newer versions
	@$(PIP) install uv
	@echo "locking requirements/base.txt and requirements/test.txt ..."
	@$(LOCK) $(ARGS) pyproject.toml requirements/build.in -o requirements/base.txt
	@$(LOCK) $(ARGS) pyproject.toml requirements/build.in --extra test -c requirements/base.txt -o requirements/test.txt
	@echo "locking requirements/chatterbox.txt and requirements/chatterbox-test.txt ..."
	@$(LOCK) $(ARGS) pyproject.toml requirements/build.in --extra chatterbox \
		--overrides requirements/chatterbox-overrides.txt -o requirements/chatterbox.txt
	@$(LOCK) $(ARGS) pyproject.toml requirements/build.in --extra chatterbox --extra test -c requirements/chatterbox.txt \
		--overrides requirements/chatterbox-overrides.txt --overrides requirements/chatterbox-cpu-overrides.txt -o requirements/chatterbox-test.txt

options: $(VENV)/.test $(VENV)/.package  ## write the environment files and option tables anew from the parsers
	@exec $(BIN)/python -m deploy.options

wheel: $(VENV)/.base $(VENV)/.package  ## build what docs/operations.md installs, into dist/
	@exec $(BIN)/python -m hatchling build --target wheel

bench: $(VENV)/.test $(VENV)/.package  ## run tts-bench with ARGS
	@exec $(BIN)/tts-bench $(ARGS)

dashboards: $(VENV)/.test $(VENV)/.package  ## write deploy/grafana/dashboards anew from the Python beside them
	@exec $(BIN)/python -m deploy.grafana

pictures: $(VENV)/.test $(VENV)/.package tools  ## draw docs/*.png of the dashboards from a fleet in trouble; needs npm and Chromium
	@exec $(BIN)/python -m tests.e2e.pictures .run/pictures

clean:  ## remove what the other targets made, .venv included
	@rm -rf $(VENV) $(CHATTERBOX_VENV) .run .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(NEW_ENOUGH)'; then
		echo "Python $(OLDEST_PYTHON) or newer is needed, and $(or $(PYTHON),every python3 found here) is not." \
			"Install one, or name one: make PYTHON=/path/to/python3.11" >&2
		exit 1
	fi
	echo "making $(VENV) with $$("$(PYTHON)" --version) ..."
	"$(PYTHON)" -m venv --clear $(VENV) >$(VENV).log 2>&1 || {
		cat $(VENV).log >&2; rm -rf $(VENV) $(VENV).log
		echo "No virtual environment could be made; on Debian, python3-venv is the package that is missing." >&2
		exit 1
	}
	rm -f $(VENV).log

$(VENV)/.base: requirements/base.txt | $(BIN)/python
	@echo "installing requirements/base.txt ..."
	@$(PIP) install --require-hashes -r $<
	@touch $@

# Holds everything of base.txt at the same versions.
$(VENV)/.test: requirements/test.txt | $(BIN)/python
	@echo "installing requirements/test.txt ..."
	@$(PIP) install --require-hashes -r $<
	@touch $@

$(CHATTERBOX_BIN)/python: | $(BIN)/python
	@echo "making $(CHATTERBOX_VENV) ..."
	@$(BIN)/python -m venv --clear $(CHATTERBOX_VENV)

# With the CPU build of torch where pip is set up with a place that has it, else with the one for CUDA: 3 GB more.
# Beside the former torchaudio's compiled parts look for CUDA's libraries; without them it is plain Python, and works.
$(CHATTERBOX_VENV)/.ready: requirements/chatterbox-test.txt requirements/chatterbox.txt requirements/torch-cpu.txt | $(CHATTERBOX_BIN)/python
	@echo "installing requirements/chatterbox-test.txt ..."
	@if $(CHATTERBOX_PIP) install --no-deps --require-hashes -r requirements/torch-cpu.txt 2>$(CHATTERBOX_VENV)/torch-cpu.log; then
		$(CHATTERBOX_PIP) install --no-deps --require-hashes -r $<
		rm -f $(CHATTERBOX_VENV)/lib/python*/site-packages/torchaudio/lib/*.so
	else
		echo "no CPU build of torch to be had; taking the one for CUDA ..."
		$(CHATTERBOX_PIP) install --no-deps --require-hashes -r requirements/chatterbox.txt
		$(CHATTERBOX_PIP) install --no-deps --require-hashes -r $<
	fi
	touch $@

$(CHATTERBOX_VENV)/.package: pyproject.toml | $(CHATTERBOX_VENV)/.ready
	@$(CHATTERBOX_PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Editable: the commands run the checkout. Needs hatchling, which both lists bring.
$(VENV)/.package: pyproject.toml | $(BIN)/python
	@echo "installing chatterbox-gateway ..."
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
