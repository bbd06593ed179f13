# `make demo` and `make test` set up what they need in .venv; neither needs a GPU.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test deep report clean

demo: .venv/demo
	$(BIN)/lab run two_machines
	$(BIN)/lab generate "The capital of France is"

test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The same tests with all their breadth: hours.
deep: .venv/test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu or deep"

report: .venv/test
	$(BIN)/lab report

clean:
	rm -rf .venv

# One stamp for each set of extras: an edited pyproject.toml installs again.
.venv/demo: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[model]"
	touch $@

.venv/test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[model,pictures,test]"
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
