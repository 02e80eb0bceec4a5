# The commands of this project. `make` lists them.
#
# Everything runs from a fresh checkout; the tests also need Node.js 20 and Java 17 or newer.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

CARGO ?= cargo
# Passed on to the program that a target runs: make demo ARGS="--clients 5"
ARGS ?=
# What a production build has.
PRODUCTION := --no-default-features --features jemalloc
# How many storms `make sim` lives through.
SEEDS ?= 1000
# How long `make fuzz` stays with each entry.
SECONDS ?= 600

.PHONY: help demo test sim model chaos drills siege idle fuzz check sbom bench bench-read image lambda-layer compose-test run-as-ecs footprint deploy-check clean-parts

help: ## List these targets
	@echo "usage: make TARGET [ARGS=\"...\"]"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do \
	    printf '  %-12s %s\n' "$$name" "$$text"; done

demo: ## See it work: a strict provider, an embedded store, the daemon
	@$(CARGO) build --locked --bins --examples
	@$(CARGO) run --locked --quiet --example demo -- $(ARGS)

# The integration tests come last, so that a run ends with what they say. The examples are built because tests start
# them as processes. Benches are left out: they have no test harness, and would run for minutes.
test: ## Run all tests, against the real parts (fetched once, from npm and PyPI)
	scripts/parts.sh --all
	$(CARGO) build --locked --examples
	$(CARGO) test --locked --doc
	$(CARGO) test --locked --lib --bins --examples
	CARGO="$(CARGO)" scripts/integration.sh

sim: ## Simulate a fleet through SEEDS storms, and a day of 100,000 clients
	$(CARGO) build --locked --profile bench --no-default-features --example sim
	@target/release/examples/sim --seeds $(SEEDS) $(ARGS)

model: ## Model check the lease protocol with wider bounds than `make test` does
	PERENNIAL_MODEL=deep $(CARGO) test --locked --test model -- --nocapture --test-threads 1 $(ARGS)

# A production build, and twenty minutes. ARGS="--scaled" takes a minute and a half.
siege: ## Besiege an agent: idle, slow and hostile connections, crowds, a table that is gone
	scripts/parts.sh
	@$(CARGO) build --locked --release $(PRODUCTION) --bin perennial
	@$(CARGO) build --locked --bins --example strict-provider --example siege
	@target/debug/examples/siege --agent target/release/perennial $(ARGS)

idle: ## Measure what an idle fleet of 2, 10 and 50 tasks costs a month
	$(CARGO) build --locked --profile bench --no-default-features --example idle
	@target/release/examples/idle $(ARGS)

# It ends with a line that begins with `summary`, and fails unless it is clean. Without ARGS it takes about ten minutes;
# `--help` after it lists what it takes, as in ARGS="--for 120s --daemons 3 --seed 7". Clocks are skewed where
# libfaketime is installed (apt-get install libfaketime); the first line of a run says whether.
chaos: ## Kill, stop and cut off real daemons, and judge what comes of it
	scripts/parts.sh
	@$(CARGO) build --locked --bins --example strict-provider --example chaos
	@target/debug/examples/chaos $(ARGS)

# About 50 minutes. ARGS="--scaled" takes seconds instead of minutes, ARGS="store_outage" rehearses one; `--help` lists them.
drills: ## Rehearse bad days with the real daemon: outages, clock steps, throttling, expired credentials
	scripts/parts.sh
	@$(CARGO) build --locked --bins --example strict-provider --example drills
	@target/debug/examples/drills $(ARGS)

# Needs a nightly toolchain and cargo-fuzz. What is found is added to fuzz/corpus, which `make test` replays.
fuzz: ## Fuzz what strangers may send, each entry for SECONDS
	@scripts/fuzz.sh $(SECONDS) $(ARGS)

check: ## Check format, lints, docs, and dependencies
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --lib --bins -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps
	scripts/one-tls-stack.sh
	scripts/deny.sh

sbom: ## Write the bill of materials of the production build, and hold it to the dependency tree
	@scripts/sbom.sh

image: ## Build the container image and hold it to its size
	@scripts/image.sh $(ARGS)

# PROFILE=dev is quick and large. What it does not try is said in docs/readers.md.
lambda-layer: ## Build the layer for AWS Lambda, and try what is in it
	scripts/parts.sh
	@CARGO="$(CARGO)" scripts/lambda-layer.sh $(ARGS)

# Both end with a line that begins with `summary`, and with code 77 where there is no container engine.
compose-test: ## Start docker-compose.yml, kill a daemon, judge what becomes of it
	@scripts/compose-test.py

run-as-ecs: ## Run the image as the task definition of ecs/ says
	scripts/parts.sh
	@scripts/run-as-ecs.py $(ARGS)

# A production build, and ten minutes.
footprint: ## Measure what a small task needs: memory, processor time, capacity units
	scripts/parts.sh
	$(CARGO) build --locked --release $(PRODUCTION) --bin perennial
	$(CARGO) build --locked --example footprint --example strict-provider
	@target/debug/examples/footprint $(ARGS)

deploy-check: ## Lint the CloudFormation template (tools fetched once, from PyPI)
	scripts/deploy-check.sh

bench: ## Measure the engine in a release build
	$(CARGO) bench --locked --bench engine -- $(ARGS)

# Needs wrk. Both the agent and the floor are production builds.
bench-read: ## Measure reads through the agent beside a bare hyper server
	scripts/parts.sh
	$(CARGO) build --locked --release $(PRODUCTION) --bin perennial --example read-server
	$(CARGO) build --locked --bin perennial --example bench-read
	@target/debug/examples/bench-read $(ARGS)

clean-parts: ## Remove what the tests have fetched
	rm -rf .parts tests/parts/node_modules examples/readers/node/node_modules
