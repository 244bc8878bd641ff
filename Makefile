# `make` explains the targets. Each does its own set-up: .venv is made once from constraints.txt and
# made again when pyproject.toml or a file of constraints changes. LOCKED=1 installs only files whose
# hashes constraints-hashes.txt lists.

PYTHON ?= python3
RUN ?= quickstart
CFGS ?= params/quickstart.yaml
STUDY ?= params/studies/quickstart.yaml
NAME ?= quickstart-study
NOTEBOOKS := $(sort $(wildcard notebooks/0*.ipynb))
ON_THEIR_OWN := notebooks/00_on_one_page.ipynb notebooks/08_your_network.ipynb
OF_A_STUDY := notebooks/06_study.ipynb
DEPLOY := notebooks/07_deploy.ipynb
OF_A_RUN := $(filter-out $(ON_THEIR_OWN) $(OF_A_STUDY) $(DEPLOY),$(NOTEBOOKS))
SHORTENED := $(patsubst %,build/nbval/%,$(OF_A_RUN))
BIN := .venv/bin
UV := 0.13.8
READY := .venv/.ready

ifeq ($(origin GRID),command line)
$(error GRID=$(GRID): write STUDY= for the file of a study)
endif
ifeq ($(origin STUDY)$(filter workbook,$(MAKECMDGOALS)),command lineworkbook)
$(error STUDY=$(STUDY): write CFGS= for an experiment; STUDY= is for make study)
endif

# The same order of sets of strings in every run.
export PYTHONHASHSEED ?= 0
# JupyterLab's open tabs are this project's own.
export JUPYTERLAB_WORKSPACES_DIR ?= $(CURDIR)/build/lab

.PHONY: help workbook deploy study test test-units test-papermill test-notebooks \
	browser-test bench gpu-check lint lock lab notebooks docs clean

help:
	@echo "make workbook   run the five notebooks with $(CFGS) and print a table of the results"
	@echo "                (CFGS=params/casia_b/gaitbase_resnet_geta.yaml RUN=my-run for another experiment)"
	@echo "make deploy     run notebook 7 on that run's networks: enrol people and identify them (RUN=my-run, CFGS=...)"
	@echo "make study      train the missing networks of $(STUDY), then run notebook 6 on their table"
	@echo "                (STUDY=params/studies/mine.yaml NAME=mine for another; under an hour on 2 cores)"
	@echo "make test       unit tests, every notebook at smoke size (papermill), the committed ones shortened (nbval)"
	@echo "make lab        JupyterLab on the notebooks and the page that leads through them (LAB=--no-browser for a server)"
	@echo "make browser-test  notebooks 1 and 5 in that lab, in chromium; screenshots in build/browser"
	@echo "make bench      measure the speed against what people use; writes benchmarks/results (a quarter of an hour)"
	@echo "make gpu-check  on a machine with a GPU: its tests, training in each number format, the benchmarks; one table"
	@echo "make notebooks  run the notebooks again and keep their outputs and figures/quickstart"
	@echo "make lint       ruff over code and notebooks, and the notebooks' saved form"
	@echo "make lock       write constraints-hashes.txt: constraints.txt with the hashes of the package index"
	@echo "make docs       write docs/configuration.md, the page of all keys"
	@echo "make clean      remove .venv and build/ (keeps runs/, data/ and figures/)"

$(READY): pyproject.toml constraints.txt constraints-hashes.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
ifeq ($(LOCKED),1)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement constraints-hashes.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
endif
	touch $@

# uv is a tool of this target alone; pip does not list the hashes of the files for other machines.
lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet uv==$(UV)
	build/lock/bin/uv pip compile pyproject.toml --extra dev --constraint constraints.txt --quiet \
		--python build/lock/bin/python --python-platform x86_64-manylinux_2_28 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --output-file constraints-hashes.txt

workbook: $(READY)
	@$(BIN)/gaitlib notebooks $(OF_A_RUN) --cfgs $(CFGS) --run $(RUN)
	@$(BIN)/gaitlib summary $(RUN)

deploy: $(READY)
	@$(BIN)/gaitlib notebooks $(DEPLOY) --cfgs $(CFGS) --run $(RUN)

study: $(READY)
	@$(BIN)/gaitlib study $(STUDY)
	@$(BIN)/gaitlib notebooks $(OF_A_STUDY) --run $(NAME)

# The notebooks of both kinds run side by side, with one thread each.
test: $(READY)
	@echo "part 1 of 2: unit tests"
	@$(MAKE) --no-print-directory test-units
	@echo "part 2 of 2: every notebook at smoke size, and the committed ones with fewer iterations"
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs 2 --output-sync test-papermill test-notebooks

test-units: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "not notebooks and not browser"

test-papermill: $(READY)
	$(BIN)/pytest -m notebooks

# nbval compares the outputs tagged for it, none of which depends on the number of iterations.
test-notebooks: $(SHORTENED) $(READY)
	@mkdir -p data && ln -sfn ../../data build/nbval/data
	GAITLIB_WORKSPACE=$(CURDIR)/build/nbval $(BIN)/pytest --nbval-lax --nbval-current-env \
		--nbval-sanitize-with tests/sanitize.cfg --nbval-cell-timeout 900 -p no:cacheprovider \
		$(SHORTENED) $(OF_A_STUDY)

# Notebook 1 shows the data, which the other ones have with fewer frames here.
build/nbval/notebooks/01%.ipynb: notebooks/01%.ipynb
	@mkdir -p $(@D) && cp $< $@

build/nbval/notebooks/%.ipynb: notebooks/%.ipynb tests/smoke/short.yaml $(READY)
	@mkdir -p $(@D)
	@$(BIN)/papermill --prepare-only --log-level ERROR $< $@ -f tests/smoke/short.yaml -k python3

browser-test: $(READY)
	$(BIN)/pytest tests/test_browser.py

bench: $(READY)
	$(BIN)/python -m benchmarks

gpu-check: $(READY)
	@$(BIN)/python -m benchmarks.gpu_check

# Jupyter refuses root unless told; in a container there is often nobody else.
ROOT_USER := $(if $(filter 0,$(shell id -u)),--allow-root)

lab: $(READY)
	$(BIN)/jupyter lab $(ROOT_USER) --LabApp.default_url=/lab/tree/notebooks/README.md \
		--LabApp.app_settings_dir=notebooks/.lab $(LAB)

notebooks: $(READY)
	$(BIN)/jupyter execute --inplace $(NOTEBOOKS)
	$(BIN)/nbstripout --keep-output --keep-count $(NOTEBOOKS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-output --keep-count $(NOTEBOOKS) notebooks/point.ipynb

docs: $(READY)
	$(BIN)/python docs/configuration.py

clean:
	rm -rf .venv build
