# Every target sets up what it needs. `make demo` and `make test` work on a fresh machine with
# Python 3.11 or later and make alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more than cores: some tests wait for servers that they started.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
# What is imported is compiled once and kept, whatever the shell says: the tests start hundreds of
# processes, and without this each of them would compile MLflow and Ibis anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test coverage lint compiled bench kill serve mlflow clean
help:
	@echo "make demo    set up, then run the whole job on real data"
	@echo "make test    everything that CI runs"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make coverage  the same tests, and the lines that none of them runs"
	@echo "make bench   side-by-side benchmarks"
	@echo "make kill    100 times kill -9 under load: is all there that was acknowledged?"
	@echo "make serve   the API on http://127.0.0.1:8000 (documentation at /docs)"
	@echo "make mlflow  the MLflow UI on http://127.0.0.1:5000"

setup: $(VENV)/.done
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("nextbest needs Python 3.11 or later; run: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	# What is imported is compiled then; to compile all that is installed takes longer.
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,onnx,otel,postgres,tune]'
	touch $@

demo: setup
	$(BIN)/nextbest demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Reads every test once, so that not every worker compiles all of them for itself. What is wrong
# with them the tests say.
compiled: setup
	@$(BIN)/pytest --collect-only -qq >/dev/null 2>&1 || true

test: setup
	# Two at a time: each of them takes one core.
	$(MAKE) --no-print-directory --jobs=2 lint compiled
	# A file stays with one worker, so that its fixtures are made once. Workers use the cores as it
	# is: threads of their own would wait for each other.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

coverage: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

bench: setup
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

kill: setup
	$(BIN)/python tests/serve/killing.py

serve: setup
	$(BIN)/nextbest serve --insecure

mlflow: setup
	$(BIN)/mlflow ui --backend-store-uri sqlite:///.nextbest/mlflow.db --port 5000

clean:
	rm -rf $(VENV) .nextbest .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
