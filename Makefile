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

.PHONY: help up test soak check tools lock options wheel bench dashboards pictures clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1#\2/p' Makefile | column -t -s '#'

up: $(VENV)/.base $(VENV)/.package  ## start a gateway and its workers on this machine; Ctrl-C stops them
	@exec $(BIN)/python -m deploy.up $(ARGS)

test: check tools  ## check, then run all tests
	@exec $(BIN)/python -m pytest -q --durations=10 $(ARGS)

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
	@rm -rf $(VENV) .run .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
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

# Editable: the commands run the checkout. Needs hatchling, which both lists bring.
$(VENV)/.package: pyproject.toml | $(BIN)/python
	@echo "installing chatterbox-gateway ..."
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
