# make install   create .venv once and install SGR, Detectron2 and what they need (about 6 GB)
# make test      run all tests, in parallel; some of them:  make test ARGS="tests/data -x"
# make test-official   the same in a second environment, .venv-official, with Detectron2 as its
#                      repository has it today, which is built there (git, a C++ compiler)
# make lint      check format, style, types and the layers of the package
# make guard     compare, in small, how fast and lean our code is beside literal versions of it
# make fuzz      try thousands of mutated annotations, descriptions of datasets and configs
# make docs      build the documentation site: build/site/index.html
# make demo      train, evaluate and draw a small example
# make clean     remove what builds and tests leave behind; .venv stays
#
# PYTHON3=python3.12   the interpreter to create .venv from (3.10 or newer)
# VENV=                use the active environment instead of .venv, and install what it lacks

PYTHON3 ?= python3
VENV ?= .venv
ARGS ?=
# What pip builds Detectron2 from; nothing stands for tools/install_detectron2.py.
DETECTRON2 ?=
OFFICIAL := git+https://github.com/facebookresearch/detectron2.git

.PHONY: install test test-official lint docs guard fuzz demo clean python

ifneq ($(strip $(VENV)),)

PYTHON := $(VENV)/bin/python
CONSTRAINT := --constraint constraints.txt

install: $(VENV)/installed

# The stamp says that these files, as they are now, have been installed.
$(VENV)/installed: setup.py pyproject.toml constraints.txt tools/install_detectron2.py \
    $(filter-out projects/SGR/%,$(wildcard projects/*/*/__init__.py))
	@$(MAKE) --no-print-directory python
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { \
	  echo "== Creating $(VENV)"; $(PYTHON3) -m venv $(VENV); }
	$(INSTALL)
	@touch $@

else

# No pins here: they would replace the versions that the environment's owner chose.
PYTHON := $(PYTHON3)
CONSTRAINT :=

install: python
	@$(PYTHON) -c 'import detectron2, mypy, pytest, pytest_randomly, sgr, xdist' 2>/dev/null \
	  || $(MAKE) --no-print-directory active VENV=

.PHONY: active
active:
	$(INSTALL)

endif

define INSTALL
@echo "== Installing SGR and its requirements (a few minutes the first time)"
$(PYTHON) -m pip install --disable-pip-version-check $(CONSTRAINT) -e '.[dev]'
@echo "== Installing Detectron2"
$(PYTHON) $(if $(DETECTRON2),-m pip install --no-build-isolation $(CONSTRAINT) \
  '$(DETECTRON2)',tools/install_detectron2.py $(CONSTRAINT))
endef

python:
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "SGR needs Python 3.10 or newer; '$(PYTHON3)' is older or missing." >&2; \
	  echo "Name another one: make PYTHON3=python3.12 ..." >&2; exit 1; }

# One thread for each of the processes: more would only wait for one another. The order is random;
# the first lines have its seed, and ARGS=--randomly-seed=SEED repeats it.
test: install
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto $(ARGS)

test-official:
	$(MAKE) test VENV=.venv-official DETECTRON2='$(OFFICIAL)'

# The same checks as in .pre-commit-config.yaml.
lint: install
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

# Links and names that do not exist are errors. It imports neither torch nor this package.
docs: install
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict $(ARGS)

# A report: a ratio outside of what tools/benchmarks/expected.yaml expects is no error.
guard: install
	$(PYTHON) -W ignore tools/benchmark.py guard

# Nightly: 4500 cases. Again with the same files:  make fuzz ARGS="--seed SEED"
fuzz: install
	OMP_NUM_THREADS=1 $(PYTHON) -W ignore tools/fuzz.py $(ARGS)

demo: install
	$(PYTHON) tools/quickstart.py $(ARGS)

clean:
	rm -rf build *.egg-info .pytest_cache
	find . -name '.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
