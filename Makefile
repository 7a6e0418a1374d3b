# Two commands on a fresh machine: `make workbench` and `make test`. Python 3.11+ with pip is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PORT ?= 5006
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH :=

.PHONY: workbench test lab run bench notebooks clean

workbench: $(READY)  ## serve the workbench on http://localhost:5006
	llmops-kit workbench --port $(PORT)

# Two processes on two cores: with a thread per core in each, the threads of NumPy wait for each other.
test: export OMP_NUM_THREADS := 1
test: $(READY)  ## layers, lint, types, generated files, notebooks, tests
	python -m pytest -q tests/test_layers.py
	ruff check nbs tests setup.py
	ruff format --check nbs tests setup.py
	mypy
	python tests/check_generated.py
	python tests/run_notebooks.py
	python -m pytest -q -n 2 --dist loadfile -m 'not alone and not browser'
	python -m pytest -q -n 2 --dist loadfile -m browser
	python -m pytest -q -m alone

lab: $(READY)  ## JupyterLab, with Panel's scripts inlined so that apps display with no network
	PANEL_INLINE=true jupyter lab nbs

run: $(READY)  ## make run NB=rag_report ARGS='-p k 5'
	@test -n "$(NB)" || { echo "Name a run: make run NB=rag_report ARGS='-p k 5'"; llmops-kit list; exit 2; }
	llmops-kit run $(NB) $(ARGS)

bench: $(READY)  ## measure the kit beside its peers; results go to data/runs
	pip install -q -e '.[bench]' -c constraints.txt
	@mkdir -p data/runs
	@for notebook in nbs/benchmarks/*.ipynb; do \
		papermill --progress-bar $$notebook data/runs/bench_$$(basename $$notebook) || exit 1; done

notebooks: $(READY)  ## after an edit: export, test, execute to store outputs, clean
	nbdev_export
	jupyter nbconvert --to notebook --inplace --execute nbs/[0-9]*/[0-9]*.ipynb
	nbdev_clean

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[dev]' -c constraints.txt
	@touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
