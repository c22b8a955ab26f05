# Everything a newcomer types: `make demo` and `make test`. Both set up `.venv` first.
# `make demo` trains a network that ends small, cuts it out, and shows it in runs/demo/report.html.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DESSILBI := $(VENV)/bin/dessilbi
STAMP := $(VENV)/.ready
# uv sets up in seconds what takes pip minutes; `make UV=` does without it.
UV := $(shell command -v uv 2>/dev/null)
# A pip speaks of newer versions, of root and of every index without a package; errors it still tells.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

# The core: its rooms and the ground floor. The files at the top of the package have doctests.
ROOMS := structure prox optimizer tickets dependency slimming growing interpretation
CORE := $(addprefix tests/,$(ROOMS)) $(filter-out tests/test_notebooks.py,$(wildcard tests/test_*.py)) \
	$(addprefix dessilbi_jax/,$(ROOMS)) $(wildcard dessilbi_jax/[!_]*.py) dessilbi_jax/__init__.py
# A crashed worker ends the run: with its place taken by another, the run can wait for ever.
PYTEST := $(PY) -m pytest -n 2 --max-worker-restart 0
# In the order of the folders: by default the files with the fewest tests, which are the longest,
# come last, and one of the two workers is idle.
WHOLE_FILES := --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast coverage lint docs clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version.split()[0])'
ifneq ($(UV),)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(PY) -e '.[dev]'
else
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -qq -e '.[dev]'
endif
	touch $(STAMP)

demo: $(STAMP)
	$(DESSILBI) train demo --out runs/demo --overwrite

test: $(STAMP)
	$(PYTEST) $(WHOLE_FILES)

# The same, with the lines and branches of the package that no test reaches; a sixth slower.
coverage: $(STAMP)
	$(PYTEST) $(WHOLE_FILES) --cov=dessilbi_jax

# The loop while one works on the core.
test-fast: $(STAMP)
	$(PYTEST) --dist worksteal -m "not slow and not process" $(CORE)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Into site/; reads nothing but this checkout, and any warning ends it.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict  # (the theme's note on its future)

clean:
	rm -rf $(VENV) runs site .coverage .pytest_cache .mypy_cache .ruff_cache
