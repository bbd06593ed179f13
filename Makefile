# `make demo` and `make test` set up what they need in .venv; neither needs a GPU.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check

.PHONY: demo test deep report docs clean

demo: .venv/demo
	@$(BIN)/lab demo

test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The same tests with all their breadth: hours.
deep: .venv/test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu or deep"

report: .venv/test
	$(BIN)/lab report

# The pages as a site, build/site/index.html.
docs: .venv/test
	$(BIN)/mkdocs build

clean:
	rm -rf .venv

# One stamp for each set of extras: an edited pyproject.toml installs again.
.venv/demo: pyproject.toml | .venv/bin/python
	@echo "Installing CuPy, NVRTC, Numba and others into .venv: under a minute if pip has them, else as long as 500 MB take."
	@$(PIP) --editable ".[model]"
	@touch $@

.venv/test: pyproject.toml | .venv/bin/python
	@echo "Installing what the tests need into .venv."
	@$(PIP) --editable ".[cuda-headers,docs,model,pictures,serve,test]"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -m venv .venv
