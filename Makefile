# Every target makes its own environment first; on a fresh machine `make demo` or `make test` is all there is to do.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := mil feature_extraction tests benchmarks

.PHONY: demo test test-long check fix bench constraints clean

demo: $(STAMP)
	$(BIN)/promptmil demo out=demo_out

test: check
	$(BIN)/pytest

test-long: $(STAMP)
	$(BIN)/pytest -m "long or not long"

check: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

fix: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/python -m feature_extraction.encoder_table README.md
	$(BIN)/python -m mil.aggregator_table README.md

bench: $(STAMP)
	$(BIN)/python -P benchmarks/extract.py
	$(BIN)/python -P benchmarks/cohort.py $(ARGS)

# A new environment whenever what it is made from changes. --system-site-packages is off: nothing from outside counts.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

constraints: $(STAMP)
	{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) demo_out build dist
