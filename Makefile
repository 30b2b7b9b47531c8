# `make demo`, `make test` and `make docs` do all their own set-up in .venv, on a fresh machine too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-oldest how-tos lint docs pictures clean

# The stamp is made anew when the dependencies change, and never left behind by an install that failed.
# PyTorch comes first and pinned: the tests are known to pass with it, and pip would else take the newest.
TORCH := torch==2.13.0
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
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

# A file is run by one worker; which begin first, tests/conftest.py says.
PARALLEL := --numprocesses auto --dist loadfile --no-loadscope-reorder

test: lint
	$(BIN)/python -m pytest $(PARALLEL) --durations 10

# The core on the oldest versions that are allowed, in an environment of its own.
OLDEST := .venv-oldest
$(OLDEST)/installed: pyproject.toml oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint oldest.txt --editable '.[test]'
	touch $@

# There, what one library warns of another says nothing of ours.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -W default tests/jaxprs tests/checking tests/ops tests/models tests/parity \
	  tests/training/test_checkpoints.py tests/training/test_oldest_run.py tests/test_jax_seam.py

# Every page of instructions from top to bottom, compiled anew as its reader's programs are, with the seconds it takes.
how-tos: $(VENV)/installed
	JAXGRAD_TEST_OPTIMISED=1 JAX_ENABLE_COMPILATION_CACHE=false $(BIN)/python -m pytest --durations 20 \
	  tests/docs/test_code_blocks.py tests/docs/test_add_an_op.py -k "a_page_runs or one_test_file"

# The theme would print what it expects of a later MkDocs than the one that pyproject.toml allows.
docs: $(VENV)/installed
	JAXGRAD_RUN_NOTEBOOKS=true NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Those of the README and the docs, from a run, a sweep and the benchmark that is kept.
pictures: $(VENV)/installed
	rm -rf runs/pictures
	$(BIN)/jaxgrad train --out runs/pictures/run
	$(BIN)/jaxgrad sweep --seeds 0:2 --lr 0.01,0.1,0.3 --steps 5000 --hidden 64 --out runs/pictures/sweep
	for ground in light dark; do \
	  for of in logits errors noise graph message \
	      "port docs/pictures/port/model.py:case --torch docs/pictures/port/reference.py:Classifier" "loss runs/pictures/run" "saturation runs/pictures/run" "embedding runs/pictures/run" \
	      "sweep runs/pictures/sweep" "bench data/benchmarks/cpu.json"; do \
	    $(BIN)/jaxgrad plot $$of $$(test $$ground = light || echo --dark) \
	      --out docs/pictures/$${of%% *}-$$ground.png || exit 1; \
	  done; \
	done

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache runs dist site
