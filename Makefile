# Everything that people and CI do with this repository. Bare `make` lists it.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
CACHE := $(or $(WIREPOST_CACHE),$(HOME)/.cache/wirepost)
export CARGO_TARGET_DIR ?= $(CACHE)/target
CARGO := scripts/cargo
# The lock file is part of the source: a build never changes it.
LOCKED := --workspace --locked

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## the whole layer on this machine: edge, in-process broker, the examples; no other software needed (ARGS="--listen 127.0.0.1:8081 --admin 127.0.0.1:9091": other ports)
	$(CARGO) run --locked -p wirepost --bin wirepost -- dev $(or $(ARGS),examples/)

# The soak waits for half of its time, and the client libraries' scenarios do too: one beside the other, and the lints after them. The
# cluster's tests wait for most of theirs: beside them runs what is judged by no clock, and only on what they leave of the processors (SCHED_IDLE).
# With anything else to do, the cluster's broker confirms too late for promises of two seconds.
.PHONY: test
test: setup fmt licences advisories unit programs ## everything that CI runs (on two cores about half an hour, an hour where nothing is cached)
	$(MAKE) --no-print-directory --jobs=3 --output-sync=target soak clients-and-description lints SECONDS=180 SEED=31
	$(MAKE) --no-print-directory integration
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target cluster-test-if-possible beside-it

.PHONY: lints
lints:
	nice -n 19 $(MAKE) --no-print-directory clippy

.PHONY: clients-and-description
clients-and-description:
	$(MAKE) --no-print-directory clients description

# The simulation first: its profile has a lock of its own, so that the cluster's programs don't wait for cargo.
.PHONY: beside-it
beside-it:
	chrt --idle 0 $(MAKE) --no-print-directory simulate-some doc conformance
	WIREPOST_FUZZ_SECONDS=3 chrt --idle 0 $(CARGO) test $(LOCKED) --lib -- changed_inputs_hold

.PHONY: setup
setup: ## installs what is missing: Rust toolchain, C compiler, openssl, iproute2, Chromium, JDK, Maven
	scripts/setup

.PHONY: check
check: fmt clippy licences advisories ## formatting, lints, licences, known vulnerabilities

.PHONY: fmt
fmt: ## is everything formatted? (`cargo fmt` does it)
	$(CARGO) fmt --all --check

# In a target folder of its own: who builds or tests meanwhile does not wait for cargo's lock.
.PHONY: clippy
clippy: ## lints, warnings are errors
	CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/lints $(CARGO) clippy $(LOCKED) --all-targets -- -D warnings

.PHONY: unit
unit: ## tests that need nothing but themselves
	$(CARGO) test $(LOCKED) --lib --bins

.PHONY: fuzz
fuzz: ## what reads other people's bytes, fed with any, guided by coverage; an hour in all (TARGETS="head cursor" SECONDS=10: for each)
	scripts/fuzz run $(or $(SECONDS),210) $(TARGETS)

.PHONY: fuzz-keep
fuzz-keep: ## adds to fuzz/corpus what `make fuzz` found to cover more
	scripts/fuzz keep $(TARGETS)

.PHONY: doc
doc: ## examples in the documentation
	$(CARGO) test $(LOCKED) --doc

# In one call of cargo: features of dev-dependencies then hold for the programs too, and nothing is compiled twice.
.PHONY: programs
programs:
	$(CARGO) build $(LOCKED) --bin wirepost --bin wirepost-edge --bin wirepost-operator --bin run-tests --bin client-suite --bin wirepost-soak --test '*'

.PHONY: integration
integration: programs ## tests against a real RabbitMQ and Kubernetes API server, started for them and stopped afterwards (WHAT="edge drain": those with these words in their names)
	WIREPOST_TEST_NO_FSYNC=yes scripts/with-kubernetes scripts/with-broker $(CARGO_TARGET_DIR)/debug/run-tests $(WHAT)

.PHONY: simulate
simulate: ## edges on a simulated clock, network and broker, from seeds (SEEDS=10000, SEEDS=100..200; SEED=17: that one, and all that happens in it)
	$(CARGO) build --profile simulation $(LOCKED) --bin wirepost-simulate
	$(CARGO_TARGET_DIR)/simulation/wirepost-simulate $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000))

# Seeds that are the same at each change, so that a fault is that of the change, and some that nobody has tried before.
.PHONY: simulate-some
simulate-some:
	$(CARGO) build --profile simulation $(LOCKED) --bin wirepost-simulate
	$(CARGO_TARGET_DIR)/simulation/wirepost-simulate --seeds 2000 --of-the-day 200

.PHONY: mutations
mutations: ## does the simulation find seeded bugs? (SEEDS=10000, BUG="silent": those with this text in their names)
	$(CARGO) build --profile simulation $(LOCKED) --bin wirepost-simulate
	$(CARGO_TARGET_DIR)/simulation/wirepost-simulate --mutations --seeds $(or $(SEEDS),10000) $(if $(BUG),--bug "$(BUG)")

.PHONY: cluster-test
cluster-test: programs ## tests of the chart on a whole Kubernetes of one node (needs root; programs are built when cold: ten minutes)
	ulimit -n $$(ulimit -Hn); scripts/with-cluster $(CARGO_TARGET_DIR)/debug/run-tests --test cluster --ignored $(WHAT)

# WIREPOST_TEST_CLUSTER=required: a machine that can't hold a cluster fails.
.PHONY: cluster-test-if-possible
cluster-test-if-possible:
	@if why=$$(tests/cluster/cluster check); then $(MAKE) --no-print-directory cluster-test; \
	elif [[ "$${WIREPOST_TEST_CLUSTER:-}" == required ]]; then echo "make cluster-test is required (WIREPOST_TEST_CLUSTER), and $$why" >&2; exit 1; \
	else printf '\nLEFT OUT: the tests of the chart on a whole Kubernetes (make cluster-test): %s\n' "$$why" >&2; fi

.PHONY: soak
soak: programs ## everything at once, broken at random, and an auditor: SECONDS=180 SEED=1; NODES=3, OPERATOR=yes
	export WIREPOST_TEST_OWNER=$$$$ WIREPOST_TEST_NO_FSYNC=yes; trap 'tests/services/rabbitmq remove --mine' EXIT; \
	tests/services/rabbitmq remove --orphaned; $(if $(OPERATOR),scripts/with-kubernetes) $(CARGO_TARGET_DIR)/debug/wirepost-soak \
		--seconds $(or $(SECONDS),180) $(if $(SEED),--seed $(SEED)) $(if $(NODES),--nodes $(NODES)) $(if $(OPERATOR),--operator)

NODE := scripts/npm --node
TYPESCRIPT := clients/typescript
.PHONY: typescript
typescript: ## the TypeScript client alone: build and unit tests
	cd $(TYPESCRIPT); [[ node_modules/.package-lock.json -nt package-lock.json ]] || ../../scripts/npm ci
	cd $(TYPESCRIPT); ../../scripts/npm run -s build; ../../scripts/npm test -s

.PHONY: playground
playground: ## writes cli/playground/client.js from the TypeScript client (a test fails while they differ)
	cd $(TYPESCRIPT); [[ node_modules/.package-lock.json -nt package-lock.json ]] || ../../scripts/npm ci
	$(NODE) $(TYPESCRIPT)/playground.mjs

# The drivers of the client libraries, see clients/suite/README.md.
DRIVERS := --driver "typescript/node=$(NODE) --expose-gc $(TYPESCRIPT)/test/drivers/node.mjs" \
	--driver "typescript/chromium=$(NODE) $(TYPESCRIPT)/test/drivers/chromium.mjs" \
	--driver "python=clients/python/run clients/python/driver.py" \
	--driver "java=clients/java/run driver"
.PHONY: clients
clients: typescript clients-python clients-java programs ## every client library: unit tests, then the scenarios that judge it, on a real edge and broker (ONLY="drain gaps": those with one of these words)
	cd $(TYPESCRIPT); WIREPOST=$(CARGO_TARGET_DIR)/debug/wirepost ../../$(NODE) --test test/browser/*.test.mjs test/edge/*.test.mjs
	WIREPOST_TEST_NO_FSYNC=yes scripts/with-broker $(CARGO_TARGET_DIR)/debug/client-suite $(DRIVERS) $(ONLY)

.PHONY: description
description: programs ## AsyncAPI's own parser reads the descriptions of the examples and of declarations with every feature
	cd tests/description; [[ node_modules/.package-lock.json -nt package-lock.json ]] || ../../scripts/npm ci --ignore-scripts
	cd tests/description; WIREPOST=$(CARGO_TARGET_DIR)/debug/wirepost ../../scripts/npm test -s

.PHONY: client-suite
client-suite: programs ## judges a client library of yours (DRIVER="python3 my_driver.py")
	@[[ -n '$(DRIVER)' ]] || { echo 'DRIVER is missing: make client-suite DRIVER="python3 my_driver.py", see clients/suite/README.md' >&2; exit 1; }
	WIREPOST_TEST_NO_FSYNC=yes scripts/with-broker $(CARGO_TARGET_DIR)/debug/client-suite --driver '$(DRIVER)' $(ONLY)

.PHONY: conformance
conformance: ## the Autobahn cases against the edge's socket code
	tests/conformance

.PHONY: crds
crds: ## writes crds/ and the chart's copies from the Rust types (a test fails while they differ)
	$(CARGO) run -q --locked -p wirepost-core --example crd crds/
	cp crds/*.yaml charts/wirepost/files/

.PHONY: clients-python
clients-python: programs ## the Python library: lints, types, tests (its service side on a real RabbitMQ), the wheel
	WIREPOST=$(CARGO_TARGET_DIR)/debug/wirepost WIREPOST_TEST_NO_FSYNC=yes scripts/with-broker clients/python/check

.PHONY: clients-java
clients-java: programs ## the Java libraries: tests (the Spring Boot starter's on a real RabbitMQ), the example's Spring service
	WIREPOST=$(CARGO_TARGET_DIR)/debug/wirepost WIREPOST_TEST_NO_FSYNC=yes scripts/with-broker clients/java/check

.PHONY: example
example: typescript ## "pay by QR" on http://localhost:8000: wirepost with a real RabbitMQ, a page and a Python service, until Ctrl-C (SERVICE=spring: a Spring Boot one)
	$(CARGO) build --locked -p wirepost --bin wirepost
	WIREPOST=$(CARGO_TARGET_DIR)/debug/wirepost SERVICE=$(or $(SERVICE),python) scripts/with-broker examples/pay-by-qr/run

.PHONY: chart
chart: ## the Helm chart's tests alone (helm is built when cold: three minutes)
	$(CARGO) build $(LOCKED) --bin run-tests --test chart
	scripts/with-kubernetes $(CARGO_TARGET_DIR)/debug/run-tests --test chart $(WHAT)

.PHONY: chart-docs
chart-docs: ## writes charts/wirepost/README.md from values.yaml (a test fails while they differ)
	scripts/chart-readme

.PHONY: broker
broker: ## a RabbitMQ to try things on; prints its addresses (`tests/services/rabbitmq stop main` ends it)
	@tests/services/rabbitmq start main

.PHONY: kubernetes
kubernetes: ## a Kubernetes API server to try things on (built when cold: five minutes); prints its addresses
	@tests/services/kubernetes start main --controllers

.PHONY: cluster
cluster: ## a whole Kubernetes of one node with RabbitMQ, wirepost and the examples; prints how to reach it (needs root)
	$(CARGO) build $(LOCKED) --bins
	tests/cluster/cluster start main >/dev/null
	tests/cluster/cluster images main
	@tests/cluster/install main

.PHONY: cluster-down
cluster-down: ## removes every trace of it
	tests/cluster/cluster remove main

.PHONY: bench-edge
bench-edge: ## memory, fanout, unicast, client to server of the edge on a real broker (release build; WHAT="idle fanout" for a part, WHAT=churn=3600: memory over an hour of coming and going)
	$(CARGO) build --release --locked -p wirepost-edge -p wirepost-bench --bins
	ulimit -n $$(ulimit -Hn); scripts/with-broker $(CARGO_TARGET_DIR)/release/wirepost-bench $(WHAT)

.PHONY: bench-peers
bench-peers: ## wirepost beside Centrifugo and Redis, on cores of their own (release build; PART=0.05 REPETITIONS=1 to try it, WRITE=docs/benchmarks.md)
	$(CARGO) build --release --locked -p wirepost-edge -p wirepost-bench --bins
	scripts/bench-peers $(WHAT)

.PHONY: bench-operator
bench-operator: ## cold start, one change, idling of the operator with 1,000 businesses and 4 edges (release build; WHAT="100 2" for fewer)
	$(CARGO) build --release --locked -p wirepost-operator -p wirepost-edge -p wirepost-bench --bins
	scripts/with-kubernetes $(CARGO_TARGET_DIR)/release/wirepost-operator-bench $(WHAT)

.PHONY: bench
bench: ## micro-benchmarks; those on a real broker are in docs/benchmarks.md
	$(CARGO) bench $(LOCKED) --benches

DENY := $(firstword $(wildcard $(CACHE)/tools/bin/cargo-deny) $(shell command -v cargo-deny 2>/dev/null))
.PHONY: licences
licences:
	@if [[ -n "$(DENY)" ]]; then PATH="$(dir $(DENY)):$$PATH" $(CARGO) deny --locked check bans licenses sources; \
	else echo "LEFT OUT: licences and duplicate crates: cargo-deny is not installed (make deny)" >&2; fi

# Known vulnerabilities. Their database is a repository on the internet: without it the check is left out, and said to be.
.PHONY: advisories
advisories:
	@if [[ -z "$(DENY)" ]]; then echo "LEFT OUT: advisories: cargo-deny is not installed (make deny)" >&2; exit; fi; \
	export PATH="$(dir $(DENY)):$$PATH"; \
	if why=$$(timeout 120 $(CARGO) deny fetch db 2>&1); then $(CARGO) deny --locked check --disable-fetch advisories; \
	else echo "LEFT OUT: advisories: their database can't be fetched: $$(grep -v '^ *$$' <<<"$$why" | tail -n 1)" >&2; fi

.PHONY: deny
deny: ## installs cargo-deny (five minutes) and checks licences, sources, duplicate crates and advisories
	@[[ -n "$(DENY)" ]] || CARGO_TARGET_DIR=$(CACHE)/tools/target $(CARGO) install --locked cargo-deny --root $(CACHE)/tools
	@rm -rf $(CACHE)/tools/target
	@$(MAKE) --no-print-directory licences advisories

.PHONY: clean
clean: ## stops the test servers, deletes their data and what was compiled (Debian roots and Kubernetes' programs stay)
	-tests/services/rabbitmq remove --all
	-tests/services/kubernetes remove --all
	-tests/cluster/cluster remove --all
	rm -rf clients/java/*/target examples/pay-by-qr/spring/target
	$(CARGO) clean
