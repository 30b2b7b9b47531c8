# `make demo`, `make test` and `make docs` do all their own set-up in .venv, on a fresh machine too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs clean

# The stamp is made anew when the dependencies change, and never left behind by an install that failed.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/jaxgrad parity
	rm -rf runs/demo
	$(BIN)/jaxgrad train --out runs/demo
	$(BIN)/jaxgrad eval runs/demo
	$(BIN)/jaxgrad sample runs/demo -n 20 --seed 42

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --numprocesses auto

# The theme would print what it expects of a later MkDocs than the one that pyproject.toml allows.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs dist site
