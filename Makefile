# `make` explains the targets. Each does its own set-up: .venv is made once from constraints.txt and
# made again when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
RUN ?= quickstart
STUDY ?= params/quickstart.yaml
NOTEBOOKS := $(sort $(wildcard notebooks/0*.ipynb))
BIN := .venv/bin
READY := .venv/.ready

# The same order of sets of strings in every run.
export PYTHONHASHSEED ?= 0

.PHONY: help workbook test lint lab notebooks clean

help:
	@echo "make workbook   run the five notebooks with $(STUDY) and print what came out"
	@echo "                (STUDY=params/casia_b/gaitbase_resnet_geta.yaml RUN=my-run for another study)"
	@echo "make test       unit tests, every notebook at smoke size (papermill), the committed notebooks (nbval)"
	@echo "make lab        JupyterLab on the notebooks"
	@echo "make notebooks  run the notebooks again and keep their outputs and figures/quickstart"
	@echo "make lint       ruff over code and notebooks, and the notebooks' saved form"
	@echo "make clean      remove .venv and build/ (runs/, data/ and figures/ stay)"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

workbook: $(READY)
	@mkdir -p runs/$(RUN)/notebooks
	@for notebook in $(NOTEBOOKS); do \
		echo "--- $$notebook"; \
		$(BIN)/papermill $$notebook runs/$(RUN)/notebooks/$$(basename $$notebook) \
			-f $(STUDY) -r run $(RUN) -k python3 --cwd notebooks --log-output --no-progress-bar || exit 1; \
	done
	@$(BIN)/gaitlib summary $(RUN)

test: $(READY)
	$(BIN)/pytest -m "not notebooks"
	$(BIN)/pytest -m notebooks
	@mkdir -p build/nbval data && ln -sfn ../../data build/nbval/data
	GAITLIB_WORKSPACE=$(CURDIR)/build/nbval $(BIN)/pytest --nbval-lax --nbval-current-env \
		--nbval-sanitize-with tests/sanitize.cfg --nbval-cell-timeout 900 -p no:cacheprovider $(NOTEBOOKS)

lab: $(READY)
	$(BIN)/jupyter lab notebooks

notebooks: $(READY)
	$(BIN)/jupyter execute --inplace $(NOTEBOOKS)
	$(BIN)/nbstripout --keep-output --keep-count $(NOTEBOOKS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-output --keep-count $(NOTEBOOKS)

clean:
	rm -rf .venv build
