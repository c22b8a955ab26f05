# Everything a newcomer types: `make demo` and `make test`. Both set up `.venv` first.
# `make demo` trains, takes a ticket of a quarter of the parameters, retrains it from the weights
# of the second epoch, cuts it out, and shows it all in runs/demo/report.html.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DESSILBI := $(VENV)/bin/dessilbi
STAMP := $(VENV)/.ready

.PHONY: demo test lint docs clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(DESSILBI) train demo --out runs/demo --overwrite
	$(DESSILBI) ticket runs/demo --params 12500
	$(DESSILBI) retrain runs/demo/ticket.npz --from 2 --epochs 10
	$(DESSILBI) slim runs/demo/ticket.npz --params-from runs/demo/retrained
	$(DESSILBI) report runs/demo

# In the order of the folders: by default the files with the fewest tests, which are the longest,
# come last, and one of the two workers is idle.
test: $(STAMP)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Into site/; reads nothing but this checkout, and any warning ends it.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict  # (the theme's note on its future)

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache
