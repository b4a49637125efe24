# Every command a user needs. It asks for Python 3.11, 3.12 or 3.13 and make, and installs the
# rest, exactly as locked, into .venv.

PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
INSTALLED := .venv/.installed
PY := $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help setup study smoke full test lint bench fidelity lab report clean lock

help:
	@echo 'make setup     install everything, exactly as locked, into .venv'
	@echo 'make study     run all notebooks at the default size: minutes on two CPU cores'
	@echo 'make smoke     run all notebooks at their smallest size'
	@echo 'make full      run all notebooks at full size: a GPU or an evening'
	@echo 'make test      run the tests, smoke run of every notebook included'
	@echo 'make lint      check style, types and layers'
	@echo 'make bench     measure speed beside what you would use instead'
	@echo 'make fidelity  compare corruptions with outputs of the published code in REFERENCE=folder,'
	@echo '               attacks with a checkout of the official AutoAttack in AUTOATTACK=folder'
	@echo 'make lab       open your copies of the notebooks, made in lab/ once, in JupyterLab'
	@echo 'make report    build the book: chapters of record, corruptions, results, report cards'
	@echo 'make clean     delete reports but those of record, stored models and caches; keep .venv and data'
	@echo 'make lock      resolve pyproject.toml into requirements.lock again'
	@echo
	@echo 'ARGS passes on arguments:  make study ARGS="--run mine -p epochs 4"'
	@echo 'PYTHON names an interpreter:  make setup PYTHON=python3.12'

setup: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo "There is no '$(PYTHON)' here. Install Python 3.11, 3.12 or 3.13, or name one:" \
	         "make setup PYTHON=/path/to/python3.12" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	    echo "Python 3.11, 3.12 or 3.13 is needed, but '$(PYTHON)' is" \
	         "$$('$(PYTHON)' -V 2>&1). Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' has no venv module. Install it (Debian and Ubuntu:" \
	         "apt install python3-venv) or name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo 'Installing into .venv; the first time downloads a few gigabytes ...'
	@'$(PYTHON)' -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip install --quiet --python $(PY) --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@
	@echo "Installed: $$($(PY) -V), $$($(PY) -c \
	    'import torch; print("torch", torch.__version__)')"

study: $(INSTALLED)
	@$(PY) -m robustlib.study $(ARGS)

smoke: $(INSTALLED)
	@$(PY) -m robustlib.study --params params/smoke $(ARGS)

full: $(INSTALLED)
	@$(PY) -m robustlib.study --params params/full $(ARGS)

report: $(INSTALLED)
	@$(PY) -m robustlib.book $(ARGS)

test: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile $(ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(INSTALLED)
	@$(PY) -m benchmarks.run $(ARGS)
	@$(PY) -m benchmarks.corruptions
	@$(PY) -m benchmarks.attacks

fidelity: $(INSTALLED)
	@test -n '$(REFERENCE)$(AUTOATTACK)' || { \
	    echo "Name the folder of reference outputs, make fidelity REFERENCE=folder, or a checkout" \
	         "of the official AutoAttack, make fidelity AUTOATTACK=folder, or both." >&2; exit 1; }
	@test -z '$(REFERENCE)' || $(PY) -m benchmarks.fidelity '$(REFERENCE)'
	@test -z '$(AUTOATTACK)' || $(PY) -m benchmarks.autoattack '$(AUTOATTACK)' $(ARGS)

lab: $(INSTALLED)
	@for notebook in notebooks/*.ipynb notebooks/solutions/*.ipynb; do \
	    copy="lab/$${notebook#notebooks/}"; mkdir -p "$${copy%/*}"; \
	    test -e "$$copy" || cp "$$notebook" "$$copy"; \
	done
	@JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter-lab \
	    --LabApp.default_url=/lab/tree/lab/00_start_here.ipynb $(ARGS)

lock: $(INSTALLED)
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	    --python-version 3.11 --extra study --extra cluster --extra dev pyproject.toml -o requirements.lock

clean:
	find reports -mindepth 1 -maxdepth 1 ! -name record -exec rm -rf {} +
	rm -rf data/store build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	    .import_linter_cache
	find robustlib tests benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} + \
	    -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
