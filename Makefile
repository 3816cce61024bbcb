# Needs python3 (3.11 or newer) and make. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv/bin/python
STAMP := .venv/installed

.PHONY: setup demo test lint

setup: $(STAMP)

# Installs again when pyproject.toml is newer than the last installation.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "PathSynth needs Python 3.11 or newer, and $(PYTHON) is older or missing; name another one with make PYTHON=python3.12." >&2; exit 1; }
	@$(VENV) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(VENV) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# One verified tile of each tissue over MCP; writes demo.png and fails when one is not verified.
demo: $(STAMP)
	$(VENV) -m server.demo --out demo.png

test: $(STAMP)
	$(VENV) -m pytest

lint: $(STAMP)
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy
