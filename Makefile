# make demo    set up, then run the main job on the embedded base, offline
# make test    set up, then run the tests (make test-all: the slow ones too)
# make check   ruff and mypy

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
APT := sudo apt install python3 python3-venv git make

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test test-all check clean

help:
	@sed -n 's/^# //p' Makefile

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing. On Debian or Ubuntu: $(APT)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "python3-venv is missing. On Debian or Ubuntu: $(APT)"; exit 1; }
	@command -v git >/dev/null || { echo "git is missing. On Debian or Ubuntu: $(APT)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Without a GPU, torch's CPU index is offered as an extra index if it answers within five seconds: its build of the same
# version is ten times smaller and wins. Where it does not answer, the ordinary index serves.
define install
	@extra=""; \
	if ! command -v nvidia-smi >/dev/null 2>&1 && \
	   $(BIN)/python -c "import urllib.request as u; u.urlopen('$(CPU_INDEX)/torch/', timeout=5)" >/dev/null 2>&1; then \
	  extra="--extra-index-url $(CPU_INDEX)"; \
	fi; \
	echo "installing into $(VENV) (a few minutes the first time)"; \
	$(BIN)/pip install --quiet --disable-pip-version-check $$extra --constraint constraints.txt $(1)
endef

$(VENV)/.user: $(VENV)/.made pyproject.toml constraints.txt
	$(call install,torch)
	$(call install,--editable .)
	@touch $@

$(VENV)/.dev: $(VENV)/.user
	$(call install,--editable '.[dev]')
	@touch $@

setup: $(VENV)/.user
setup-dev: $(VENV)/.dev

demo: setup
	$(BIN)/luthier demo

test: setup-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: setup-dev
	$(BIN)/python -m pytest -n 2

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
