# make demo   set up .venv and run the whole pipeline on real digits (about a minute and a half once installed)
# make test   set up everything and run the whole suite in processes side by side; PARALLEL= runs it in one
# make lint   ruff (rules and format), mypy, import-linter
# make figures   every figure and table of the paper, into runs/figures: under an hour on two cores. FULL=--full is the
#             paper's size (hours), R2F_DATA the folder of real data, POOL=--dask=ADDRESS a cluster. Goes on where it was
# make soak MINUTES=60   runs whose processes are killed, frozen and cut off at random, and a table of it, into runs/soak: SEED=1 others
# make docs   the documentation as a site, in site/; fails on a link that leads nowhere
#
# On x86-64 Linux PyPI's torch brings CUDA along. For the small CPU build, set PIP_EXTRA_INDEX_URL to PyTorch's
# index of CPU wheels before the first make; pip prefers it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Debian puts mosquitto where an ordinary user's PATH does not look.
export PATH := $(PATH):/usr/sbin

.PHONY: demo test lint docs npm figures soak mosquitto clean

demo: $(VENV)/installed
	$(BIN)/r2f demo

# A process a core, each with whole files, so that what a file's tests share is made once. At most four: each holds torch.
PARALLEL ?= -n logical --maxprocesses 4 --dist loadfile
test: $(VENV)/installed-dev mosquitto
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

FIGURES := runs/figures
# By what they take: the cheap ones first.
figures: $(VENV)/installed-dev
	$(BIN)/python -m experiments.table3_networks --out $(FIGURES) $(POOL)
	$(BIN)/python -m experiments.deconv_speed --json $(FIGURES)/deconv_speed.json --out $(FIGURES) $(POOL)
	$(BIN)/python -m experiments.deconv_quality $(if $(FULL),,--ber 1e-3 --images 100 --seeds 3) \
	    --json $(FIGURES)/deconv_quality.json --out $(FIGURES) $(POOL)
	$(BIN)/python -m experiments.fig9_tmr --out $(FIGURES) $(FULL) $(POOL)
	$(BIN)/python -m experiments.fig1_ber_sweep --out $(FIGURES) $(FULL) $(POOL)
	$(BIN)/python -m experiments.wire_cost --out $(FIGURES)/wire_cost.json
	$(BIN)/python -m experiments.fig6_time --measured $(FIGURES)/wire_cost.json --out $(FIGURES)
	$(BIN)/python -m experiments.fig7_bytes --measured $(FIGURES)/wire_cost.json --out $(FIGURES)
	$(BIN)/python -m experiments.fig2_matching --out $(FIGURES) $(FULL) $(POOL)
	$(BIN)/python -m experiments.fig4_accuracy --out $(FIGURES) $(FULL) $(POOL)
	$(BIN)/python -m experiments.fig8_batch --out $(FIGURES) $(FULL) $(POOL)
	$(BIN)/python -m experiments.fig10_epochs --out $(FIGURES) $(FULL) $(POOL)
	$(BIN)/python -m experiments.fig5_protection --out $(FIGURES) $(FULL) $(POOL)
	$(BIN)/python -m experiments.reduce --network digits_cnn resnet20 $(if $(FULL),resnet56,--maps 1 --chips 4 --no-mapping) \
	    --json $(FIGURES)/reduce.json --out $(FIGURES) $(POOL)

MINUTES := 60
SEED := 0
soak: $(VENV)/installed-dev mosquitto
	$(BIN)/python -m experiments.soak --minutes $(MINUTES) --seed $(SEED) --out runs/soak

# The bus as a page of its own, by AsyncAPI's component, where npm is; without, docs/bus.md has the same in words.
docs: $(VENV)/installed-dev npm
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@if [ -d $(NPM)/node_modules/@asyncapi/react-component ]; then $(BIN)/python -m services.bus.asyncapi \
	    --page site/asyncapi.html --component $(NPM)/node_modules/@asyncapi/react-component && echo site/asyncapi.html; fi

NPM := $(VENV)/npm
npm: | $(BIN)/python
	@if [ -d $(NPM)/node_modules/@asyncapi/parser ] && [ -d $(NPM)/node_modules/aedes ]; then :; elif command -v npm >/dev/null && npm install --silent --no-audit --no-fund \
	    --ignore-scripts --prefix $(NPM) @asyncapi/parser@3 @asyncapi/react-component@3 aedes@1 >/dev/null; then :; \
	else echo "npm is not here, or reaches no registry: no page of docs/asyncapi.json, AsyncAPI's parser does not check it, and the"; \
	    echo "bus is not tried on aedes"; fi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "no virtual environment: on Debian, install python3-venv; elsewhere, a Python that has ensurepip" >&2; exit 1; }

# The stamps are newer than pyproject.toml once its packages are in. Kernels are compiled now, while nothing else runs.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	$(BIN)/python -m r2f.warm
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m r2f.warm
	@touch $@ $(VENV)/installed

mosquitto:
	@if command -v mosquitto >/dev/null; then mosquitto -h | head -n 1; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends mosquitto >/dev/null; then \
	    mosquitto -h | head -n 1; \
	else echo "Mosquitto is not here and cannot be installed (root and apt are needed): its half of the tests is skipped"; fi

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
