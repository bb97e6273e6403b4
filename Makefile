# make serve: install what is needed and talk. make test: everything the project checks about itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
INSTALL := $(BIN)/python -m pip install --progress-bar on -c constraints.txt
# Programs that the tests drive; Debian's package has the program's name unless it is said here.
TEST_PROGRAMS := chromium espeak-ng flite festival nginx node npm baresip sipp turnserver promtool
PACKAGE_OF_nginx := nginx-light
PACKAGE_OF_node := nodejs
PACKAGE_OF_baresip := baresip-core
PACKAGE_OF_sipp := sip-tester
PACKAGE_OF_turnserver := coturn
PACKAGE_OF_promtool := prometheus
MISSING_PACKAGES = $(foreach program,$(TEST_PROGRAMS),$(if $(shell command -v $(program)),,$(or $(PACKAGE_OF_$(program)),$(program))))

.PHONY: setup serve test newcomer chaos fuzz cluster-test conformance lint docs web sbom deploy-check test-programs clean
.DEFAULT_GOAL := serve

setup: $(STAMPS)/base

define fresh_venv
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "agogic needs Python 3.11, 3.12 or 3.13; this is %d.%d. Name another one: make PYTHON=python3.12" % v)'
@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
@$(BIN)/python -m pip install -q --upgrade pip
endef

$(STAMPS)/base: pyproject.toml constraints.txt
	@echo "== agogic: installing into $(VENV) (1.4 GB, about a minute) =="
	$(fresh_venv)
	$(INSTALL) -e .
	@mkdir -p $(STAMPS) && touch $@

# In one go with what the base is: asking pip twice takes twice as long.
$(STAMPS)/dev: pyproject.toml constraints.txt
	@echo "== agogic: installing into $(VENV), with the test tools (2.1 GB, two minutes) =="
	$(fresh_venv)
	$(INSTALL) -e '.[dev]'
	@mkdir -p $(STAMPS) && touch $(STAMPS)/base $@

$(STAMPS)/web: clients/web/package-lock.json | test-programs
	@echo "== agogic: installing the page's build tools =="
	cd clients/web && npm ci
	@mkdir -p $(STAMPS) && touch $@

serve: $(STAMPS)/base
	$(BIN)/agogic serve --config configs/embedded.toml $(ARGS)

# What drives the tests from outside. Root installs what is missing, and nothing else: a Node from elsewhere conflicts with
# Debian's npm. Anybody else is told what to ask for.
test-programs:
	@missing="$(strip $(MISSING_PACKAGES))"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "== agogic: installing $$missing =="; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	else \
		echo "The tests need more programs. On Debian or Ubuntu: sudo apt-get install $$missing" >&2; exit 1; \
	fi

# All of it in two runs side by side (tests/__main__.py), or in one what pytest is told by ARGS.
test: $(STAMPS)/dev test-programs $(STAMPS)/web
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m $(if $(strip $(ARGS)),pytest --durations=10 $(ARGS),tests)

# An hour of everything at once against a real server, then 10,000 sessions; ARGS="--seed N" draws the same steps again.
chaos: $(STAMPS)/dev
	$(BIN)/python -m tests.chaos $(ARGS)

# From a clone to a spoken answer, and from the packed SDK to a talking page, with a clock beside it.
newcomer: $(STAMPS)/dev test-programs $(STAMPS)/web
	$(BIN)/python -m tests.newcomer --python $(PYTHON) $(ARGS)

# EVENTS of conversations in any order, an hour on one core that is shared; then inputs that find new paths through what reads
# other people's bytes, SECONDS for each of the fuzzers.
EVENTS ?= 1000000
SECONDS ?= 900
fuzz: $(STAMPS)/fuzz
	$(BIN)/python -m tests.fuzz.conversation --events $(EVENTS)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

$(STAMPS)/fuzz: $(STAMPS)/dev
	$(INSTALL) -e '.[dev,fuzz]'
	@touch $@

# Two machines of a Ray cluster on this one, and kill -9. Ray is large: it gets an environment of its own, which sees ours.
cluster-test: $(STAMPS)/cluster
	RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/cluster/bin/python -m pytest -s tests/cluster $(ARGS)

$(STAMPS)/cluster: $(STAMPS)/dev
	$(BIN)/python -m venv $(VENV)/cluster
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(VENV)/cluster/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(VENV)/cluster/bin/python -m pip install -q -c constraints.txt ray
	@touch $@

# Stock clients in conversation with a server: the SDKs, and the frameworks from an environment of their own (0.8 GB).
# ARGS="--url http://HOST:PORT" tries another server, ARGS="--client pipecat" one client alone.
conformance: $(STAMPS)/stock test-programs $(STAMPS)/web
	$(BIN)/python -m tests.conformance $(ARGS)

$(STAMPS)/stock: tests/conformance/requirements.txt $(STAMPS)/dev
	@echo "== agogic: installing the frameworks that the conformance suite drives into $(VENV)/stock =="
	$(BIN)/python -m venv $(VENV)/stock
	$(VENV)/stock/bin/python -m pip install --progress-bar on -r tests/conformance/requirements.txt
	@touch $@

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	nice -n 19 $(BIN)/mypy

# The guide, into build/site; a dead link ends it.
docs: $(STAMPS)/dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/python -m mkdocs build --strict

# What is installed to serve, as a software bill of materials (CycloneDX).
sbom: $(STAMPS)/base $(STAMPS)/deploy
	build/deploy-venv/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
		--output-file build/sbom.json $(BIN)/python

# Images, chart and units before linters and schemas, which are too large for everybody who runs the tests.
deploy-check: $(STAMPS)/dev $(STAMPS)/deploy test-programs
	AGOGIC_DEPLOY_CHECK=1 $(BIN)/python -m pytest tests/deploy $(ARGS)

$(STAMPS)/deploy: deploy/requirements.txt
	@echo "== agogic: installing what looks at deploy/ into build/deploy-venv (200 MB) =="
	$(PYTHON) -m venv build/deploy-venv
	build/deploy-venv/bin/python -m pip install -q -r deploy/requirements.txt
	@mkdir -p $(STAMPS) && touch $@

web: test-programs $(STAMPS)/web
	cd clients/web && npm run build

clean:
	rm -rf $(VENV) build clients/web/node_modules
