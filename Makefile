# Everything happens inside the clone (.venv, lakehouse, build); outside it only the standard package caches are used.
.DEFAULT_GOAL := setup
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CONF ?= conf/demo.yaml
# Overrides of the configuration, as in: make demo SET="source.units=20000 seed=3"
SET ?=
EXTRAS := local,dev,plots,notebooks,serving
# What pytest is given, as in: make test ARGS="tests/stats -x"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# One stamp per content of the two files: nothing is installed again until one of them changes.
KEY := $(firstword $(shell cat pyproject.toml constraints.txt | cksum))
READY := $(VENV)/.ready-$(KEY)
READY_BENCH := $(VENV)/.ready-bench-$(KEY)
READY_DOCS := $(VENV)/.ready-docs-$(KEY)
# A Python named on the command line that differs from the one in .venv makes it anew.
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(BIN)/python -V 2>/dev/null),$(shell $(PYTHON) -V 2>/dev/null))
OTHER_PYTHON := other-python
endif
endif

SETS := $(foreach pair,$(SET),--set $(pair))
SHARED_DATA := $(wildcard ../shared/data)
ifneq ($(SHARED_DATA),)
export UPLIFT_DATA ?= $(abspath $(SHARED_DATA))
endif
# Caches that these libraries would otherwise put into the home folder.
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/cache/matplotlib
export IPYTHONDIR := $(CURDIR)/$(VENV)/cache/ipython
export JUPYTER_CONFIG_DIR := $(CURDIR)/$(VENV)/cache/jupyter
export JUPYTER_DATA_DIR := $(CURDIR)/$(VENV)/cache/jupyter
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup python java demo test slow simulations faults fuzz security matrix approval-story loop lint notebooks docs house bench load serve-demo wheel lock clean other-python

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1|\2/' | \
		while IFS='|' read -r name text; do printf '  %-20s %s\n' "$$name" "$$text"; done

setup: $(READY) ## create or update .venv (the default)
	@echo "ready: $(BIN)/uplift --help"

$(READY): $(OTHER_PYTHON) | python
	@test -x $(BIN)/python || echo "creating $(VENV) with $$($(PYTHON) -V)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@echo "installing packages"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'
	@echo "compiling kernels"
	@$(BIN)/python -m uplift_spark.estimators
	@echo "archiving Java's classes"
	@$(BIN)/python -m uplift_spark.lake.session
	@rm -f $(VENV)/.ready-*
	@touch $@

$(READY_BENCH): $(READY)
	@echo "installing the peers to compare with"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS),bench]'
	@touch $@

$(READY_DOCS): $(READY)
	@echo "installing what builds the guide"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS),docs]'
	@touch $@

python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "Python 3.11 or newer is needed and '$(PYTHON)' is not found: install it (Debian: apt-get install python3-venv) or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed and '$(PYTHON)' is $$($(PYTHON) -V 2>&1): name a newer one, as in: make PYTHON=python3.12" >&2; exit 1; }

other-python: python
	@echo "$(VENV) holds $$($(BIN)/python -V 2>/dev/null || echo no Python): making it anew with $(PYTHON)"
	@rm -rf $(VENV)

java:
	@java="$${JAVA_HOME:+$$JAVA_HOME/bin/}java"; \
	version="$$("$$java" -version 2>&1 | sed -nE 's/.* version "(1\.)?([0-9]+).*/\2/p' | head -1 || true)"; \
	if [ "$${version:-0}" -lt 17 ]; then \
		echo "Java 17 or newer is needed and $${version:+only Java }$${version:-none} is found$${JAVA_HOME:+ in JAVA_HOME=$$JAVA_HOME}: on Debian, apt-get install openjdk-17-jre-headless (from Debian 13: openjdk-21-jre-headless)" >&2; \
		exit 1; \
	fi

demo: java $(READY) ## a whole campaign, from raw events to the lift table (CONF=conf/X.yaml SET="key=value ...")
	@$(BIN)/uplift demo --conf $(CONF) $(SETS)

test: java $(READY) ## a short test of everything (ARGS="tests/stats -x" for some)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not simulation and not slow" $(ARGS)

slow: java $(READY) ## the long tests: whole jobs, Spark Connect, spark-submit, streams, killed drivers (ARGS=tests/jobs)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

simulations: $(READY) ## the statistical claims with many replications (minutes); make test runs a quick variant
	@$(BIN)/python -m pytest -m simulation -rP $(ARGS)
	@$(BIN)/python tests/benchmarks/statistical_tables.py

faults: java $(READY) ## crash every writing job, lose replies and executors, feed bad input (ARGS="--jobs load --kills 3")
	@$(BIN)/python -m tests.faults $(ARGS)

security: java $(READY) ## attack the platform's doors, on a session, too (ARGS="--parts sql" needs no Spark)
	@$(BIN)/python -m tests.security $(ARGS)

matrix: java $(READY) ## the small line, training and Connect on Spark 3.5, 4.0, 4.1 and 4.2 (ARGS="--only 4.0.1")
	@$(BIN)/python -m tests.versions $(ARGS)

approval-story: java $(READY) ## trained, refused, mended by a cap, approved, objected to, erased, verified: as a table (ARGS="--units 20000")
	@$(BIN)/python -m tests.governance.story $(ARGS)

loop: java $(READY) ## a simulated campaign: drift, a bad model, an outage of labels; what the jobs make of each (ARGS="--per-day 500")
	@$(BIN)/uplift gameday loop $(ARGS)

fuzz: $(READY) ## 140,000 mutations of model files, configurations and input files (ARGS="--mutations 2000 --seed 3")
	@$(BIN)/python -m tests.fuzz --workers 2 $(ARGS)

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

notebooks: java $(READY) ## execute the notebooks against the tables of the Hillstrom campaign
	@$(BIN)/uplift demo --conf conf/hillstrom.yaml
	@made=(); trap 'rm -f "$${made[@]}"' EXIT; \
	for source in $(wildcard notebooks/*.py notebooks/*.md); do \
		made+=("$${source%.*}.ipynb"); \
		$(BIN)/jupytext --quiet --to ipynb "$$source"; \
	done; \
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks

docs: $(READY_DOCS) ## build the guide into build/docs; a broken link or an unlisted page is an error (ARGS=serve shows it at localhost:8000)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(if $(filter serve,$(ARGS)),serve,build --strict --quiet)
	@test ! -d build/docs || echo "build/docs/index.html"

house: ## measure the house: files, lines, importers, names, banned words (ARGS=FOLDER for another checkout)
	@$(PYTHON) tests/house.py $(ARGS)

bench: java $(READY_BENCH) ## time and memory of every job, and quality against the truth (ONLY=line ARGS="--units 1000000" for one)
	@for script in $(if $(ONLY),$(ONLY:%=tests/benchmarks/bench_%.py),tests/benchmarks/bench_*.py); do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done

load: $(READY) ## a bounded load on `uplift serve` on loopback: latencies; too much, attacks, faults (ARGS="--parts much faults")
	@$(BIN)/python -m tests.load $(ARGS)

serve-demo: java $(READY) ## publish, serve a simulated day, load its log, and show what it brought beside the truth (ARGS="--units 4000")
	@$(BIN)/python -m tests.serving.served_day $(ARGS)

wheel: $(READY) ## build the wheel into build/dist
	@rm -rf build/lib build/dist && $(BIN)/uv build --quiet --wheel --out-dir build/dist --python $(BIN)/python .
	@ls build/dist/*.whl

lock: $(READY) ## rewrite constraints.txt with the newest versions that fit pyproject.toml
	@$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --output-file constraints.txt pyproject.toml

clean: ## remove .venv, build output and caches (never the lakehouse)
	@rm -rf $(VENV) build uplift_spark.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
