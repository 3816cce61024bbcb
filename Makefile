# Needs python3 (3.11 or newer) and make. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv/bin/python
STAMP := .venv/installed
NODE := tests/conformance/node_modules/.package-lock.json

.PHONY: setup demo test lint conformance docs bundle

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

# One of the extras of pyproject.toml, beside what the setup installed.
.venv/installed-%: $(STAMP)
	$(VENV) -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# The Node packages that the lock file pins, with the Node of the extra; none of their own scripts is run.
$(NODE): tests/conformance/package.json tests/conformance/package-lock.json .venv/installed-conformance
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/npm ci --prefix tests/conformance --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# The protocol's own suite, the inspector, the TypeScript client and fuzzing. `make conformance ONLY=inspector` runs
# the checks with that word in their name.
conformance: $(NODE)
	$(VENV) -m tests.conformance $(ONLY)

# The pages of docs/ and those made from the server itself, as a site in build/site.
docs: .venv/installed-docs
	$(VENV) docs/write_pages.py
	.venv/bin/zensical build --clean --strict

# The MCP bundle for Claude Desktop, dist/pathsynth-VERSION.mcpb.
bundle: $(NODE)
	$(VENV) mcpb/pack_bundle.py
