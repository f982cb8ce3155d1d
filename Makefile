# Every target makes its own virtual environment when there is none, and is safe to repeat.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHAT ?= merge

.PHONY: help install demo test test-fast test-lowest test-slow test-peer test-http test-browser check docs links wheel sbom bench clean

help:
	@echo "make install      the virtual environment with everything the other targets need"
	@echo "make demo         the main job on the Python language reference, into build/demo"
	@echo "make test         unit, property, integration, contract, attack and parity tests"
	@echo "make test-fast    contracts and the fast unit tests, for every save"
	@echo "make test-lowest  the same with the lowest versions that pyproject.toml allows"
	@echo "make test-slow    tests of minutes, of many kills, and with the real embedded models"
	@echo "make test-http    the HTTP description against a live server, by schemathesis"
	@echo "make test-browser the console in a real Chromium, held to axe (needs chromium and npm)"
	@echo "make check        layers, types, lint, docstrings and spelling"
	@echo "make docs         the documentation as a site, into build/site"
	@echo "make links        the same, and every link of it looked at; external ones are listed"
	@echo "make wheel        the wheel and sdist, tried in a fresh environment, into build/dist"
	@echo "make sbom         what the wheel brings along, as CycloneDX, into build/sbom.json"
	@echo "make bench WHAT=merge   one JSON line a figure"
	@echo "make clean        remove build/ and $(VENV)/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt weights.txt scripts/install
	PYTHON="$(PYTHON)" scripts/install $(VENV)
	@touch $@

demo: $(STAMP)
	scripts/demo $(VENV)

test: $(STAMP)
	scripts/test $(VENV)

test-fast: $(STAMP)
	scripts/test $(VENV) fast

test-lowest:
	PYTHON="$(PYTHON)" scripts/test-lowest build/lowest

test-slow: $(STAMP)
	scripts/test $(VENV) slow

test-peer: $(STAMP)
	scripts/test $(VENV) peer

test-http: $(STAMP)
	scripts/test-http $(VENV)

test-browser: $(STAMP)
	scripts/test $(VENV) browser

check: $(STAMP)
	scripts/check $(VENV)

docs: $(STAMP)
	scripts/docs $(VENV)

links: docs
	$(BIN)/python scripts/check_links.py build/site

wheel: $(STAMP)
	scripts/release $(VENV) wheel

sbom: $(STAMP)
	scripts/release $(VENV) sbom

bench: $(STAMP)
	@scripts/bench $(VENV) $(WHAT)

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache
