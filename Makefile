# `make` alone lists the targets. Everything is installed into .venv once, and again when the requirements change.

# Interpreters to try, best first: the tested versions in constraints.txt were chosen on 3.11.
PYTHON ?= python3.11 python3.12 python3.13 python3
VENV ?= .venv
# Exact tested versions. `make CONSTRAINTS= test` takes the newest that setup.cfg admits.
CONSTRAINTS ?= constraints.txt
# More extras for any target, separated by spaces: `make train EXTRAS=cuda`.
EXTRAS ?=
# More flags for the script that a target runs: `make train ARGS=--config.training.steps=100`. A --config or --workdir
# among them is in place of the target's own: `make train ARGS="--workdir=runs/short --config.training.steps=100"`.
ARGS ?=
# Flags for pytest: `make test PYTEST_ARGS="-k attention"`. By default two processes: each begins with
# half of the files, whose tests share compiled functions, and takes over tests of the other when it is done.
PYTEST_ARGS ?= --numprocesses=2 --dist=worksteal

# Compiled modules are kept, whatever the environment says: each process would compile the lab again.
export PYTHONDONTWRITEBYTECODE :=

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
REQUIREMENTS := setup.cfg pyproject.toml $(CONSTRAINTS)
# One stamp for each extra that is installed, and `core` for none.
installed = $(patsubst %,$(VENV)/.installed-%,core $(1) $(EXTRAS))

# $(call default,--FLAG,VALUE): --FLAG=VALUE, unless ARGS has that flag.
default = $(if $(filter $(1) $(1)=%,$(ARGS)),,$(1)=$(2))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installations into one environment must not run at once.
.NOTPARALLEL:
.PHONY: help setup train speeches test test-integration test-slow test-tpu test-cuda test-typed lint format benchmark ablation forecasting debate probes faults mutants coverage parity first-steps check-device edge-page browser clean

help: ## list the targets
	@echo "usage: make TARGET [ARGS=...] [EXTRAS=cuda|tpu] [PYTHON=...]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(call installed,) ## make .venv and install the lab

train: $(call installed,) ## train the default recipe, handwritten digits, into runs/digits
	@$(RUN) train.py $(call default,--config,configs/digits.py) $(ARGS)

speeches: $(call installed,) ## train the character model of speeches into runs/speeches
	@$(RUN) train.py $(call default,--config,configs/speeches.py) $(ARGS)

test: lint ## lint, then run the tests of single parts
	@$(RUN) -m pytest -m 'not (integration or slow or tpu or cuda)' $(PYTEST_ARGS)

test-integration: $(call installed,test) browser ## the tests of whole commands, several processes, pages in a browser
	@$(RUN) -m pytest -m 'integration and not slow' $(PYTEST_ARGS)

test-slow: $(call installed,test) ## the tests that train for long
	@$(RUN) -m pytest -m slow

test-tpu: $(call installed,test tpu-compile) ## compile for TPUs, on a machine without one (installs libtpu)
	@$(RUN) -m pytest --numprocesses=2 --dist=worksteal -m tpu tests/devices $(ARGS)

test-cuda: $(call installed,test cuda-compile) ## compile for GPUs, on a machine without one (installs CUDA's libraries, 3.4 GB)
	@$(RUN) -m pytest --numprocesses=2 --dist=worksteal -m cuda tests/devices $(ARGS)

test-typed: $(call installed,test) ## all tests, with every type and shape annotation checked
	@$(RUN) -m pytest -m 'not (slow or tpu or cuda)' $(PYTEST_ARGS) --jaxtyping-packages=flaxformer_lab,beartype.beartype

lint: $(call installed,test) ## check style and format
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

format: $(call installed,test) ## fix style and format automatically
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

benchmark: $(call installed,parity) ## time the train step, and PyTorch's (installs PyTorch)
	@$(RUN) benchmarks/train_step.py $(ARGS)

ablation: $(call installed,) ## train every variant on every probe, with intervals and verdicts, into runs/cross_dimension
	@$(RUN) -m flaxformer_lab.ablate $(call default,--config,configs/ablations/cross_dimension.py) \
	    $(call default,--workdir,runs/cross_dimension) $(ARGS)

forecasting: $(call installed,) ## forecasters beside a linear map, small, into runs/forecasting-short (sized for 10 minutes)
	@$(RUN) -m flaxformer_lab.ablate $(call default,--config,configs/ablations/forecasting.py:short) \
	    $(call default,--workdir,runs/forecasting-short) $(ARGS)

debate: $(call installed,onnx) ## train every ablation that carries claims, and write docs/results; ARGS=--from_results: write it again, in a minute
	@$(RUN) tools/debate.py $(ARGS)

probes: $(call installed,) ## train every probe and write the table in docs/science.md
	@$(RUN) tools/probe_table.py $(ARGS)

faults: $(call installed,) ## kill, damage and starve runs, and write the outcomes into docs/reliability.md
	@$(RUN) tools/faults.py $(ARGS)

mutants: $(call installed,test) ## plant faults in what judges an ablation, and count those that the tests see
	@$(RUN) tools/mutants.py $(ARGS)

coverage: $(call installed,) ## simulate how often intervals hold the truth, and write the table in docs/science.md
	@$(RUN) tools/coverage.py $(ARGS)

parity: $(call installed,parity forecast-parity field-parity detection-parity) ## write the parity tests' golden files again (installs PyTorch)
	@$(RUN) tools/make_parity_goldens.py $(ARGS)
	@$(RUN) tools/make_forecast_goldens.py $(ARGS)
	@$(RUN) tools/make_field_goldens.py
	@$(RUN) tools/make_detection_goldens.py

first-steps: ## do what the README's first screen says in a fresh clone, and compare the figures (half an hour)
	@tools/first_steps.sh $(ARGS)

check-device: $(call installed,) ## check formulas, modules and commands on the devices of this machine, without a network
	@$(RUN) tools/check_device.py $(ARGS)

edge-page: $(call installed,onnx) ## a page that classifies drawn digits in the browser, into runs/edge-page (takes runs/digits; npm)
	@$(RUN) examples/edge/build.py $(ARGS)

clean: ## remove caches and build products; .venv and runs stay
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-core: $(REQUIREMENTS) | $(RUN)
	@echo "Installing the lab into $(VENV) (a few minutes, once)"
	@$(PIP) --version >/dev/null 2>&1 || $(RUN) -m ensurepip >/dev/null # some tools make environments without pip
	@$(PIP) install $(addprefix --constraint ,$(CONSTRAINTS)) --editable .
	@touch $@

$(VENV)/.installed-%: $(REQUIREMENTS) | $(VENV)/.installed-core
	@echo "Installing the extra '$*' into $(VENV)"
	@$(PIP) install $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[$*]'
	@touch $@

# A test opens the HTML report in Chromium, and is skipped where there is none. As root on Debian, Chromium is installed
# once; without it all other tests run.
BROWSERS := google-chrome google-chrome-stable chromium chromium-browser
browser:
	@for name in $(BROWSERS); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing chromium, which opens the HTML report in a test"; \
	    export DEBIAN_FRONTEND=noninteractive; \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "There is no Chromium here, so the tests that open the HTML report in it are skipped"

# The first interpreter that is new enough and can make an environment; else the first that is new enough.
# Debian and its derivatives have a separate package for making environments.
$(RUN):
	@python=; \
	for candidate in $(PYTHON); do \
	    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    python=$${python:-$$candidate}; \
	    "$$candidate" -c 'import ensurepip, venv' 2>/dev/null && python=$$candidate && break; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "No Python 3.11 or newer among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "Installing $$package, which makes environments"; \
	        { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$$package"; } >/dev/null; \
	    fi; \
	    if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        echo "$$python cannot make environments, because it has no ensurepip. On Debian and Ubuntu:" >&2; \
	        echo "    sudo apt-get install $$package" >&2; \
	        echo "Elsewhere, name another Python: make PYTHON=/path/to/python3" >&2; \
	        exit 1; \
	    fi; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
