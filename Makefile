# The index of commands. `make` alone lists them.

PORT ?= 8080
DATA ?= ./.millrace
CARGO ?= cargo
# Run as it was built, together with the others: `cargo run -p` would choose other features of shared crates and build
# those again. No optimisation: ffmpeg does the heavy work in any profile, and a first build is twice as fast.
BENCH = $(or $(CARGO_TARGET_DIR),target)/debug/millrace-bench
# What measures is optimised.
BENCH_RELEASE = $(or $(CARGO_TARGET_DIR),target)/release/millrace-bench
BENCH_OUT = $(or $(CARGO_TARGET_DIR),target)/bench
# Proxies of others that no package manager has.
BENCH_PEERS = $(or $(CARGO_TARGET_DIR),target)/peers/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo up build test chaos partition check-deploy check-terraform bench-worker bench-ranges bench-gateway bench-routing postman fmt lint clean-data

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PORT=8080        the gateway's port of \`make up\`; its admin side is on the next one"
	@echo "  BENCH_ARGS=      for \`make bench-worker\`: --seconds 10 --runs 3 is quicker, --clip FILE is a clip of yours;"
	@echo "                   for \`make bench-gateway\`: --alone leaves the other proxies out, --rounds 20 is quicker"
	@echo "  CHAOS_ARGS=      for \`make chaos\`: --kills 20 is quicker, --seed N is the run that printed it"
	@echo "  PARTITION_ARGS=  for \`make partition\`: --cut 10 is quicker"
	@echo "  DATA=./.millrace where \`make demo\` and \`make up\` keep everything"

setup: ## Install what is missing to build and run (ffmpeg, a C compiler, cmake, …), else say nothing
	@scripts/setup

demo: ## Transcode a real clip through one gateway and two pools, check the result, and end
	@scripts/setup demo
	@$(CARGO) build --workspace --bins --locked
	@exec $(BENCH) demo --data '$(DATA)'

up: ## Start the same system and serve on PORT until Ctrl-C
	@scripts/setup
	@$(CARGO) build --workspace --bins --locked
	@exec $(BENCH) up --port '$(PORT)' --data '$(DATA)'

build: setup ## Build the three programs into target/debug
	$(CARGO) build --workspace --bins --locked

test: ## Check format and lints, then run every test, with real binaries, real ffmpeg and a real browser
	@scripts/setup test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) build --workspace --bins --locked
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; $(CARGO) nextest run --workspace --locked; \
	else \
		set -x; $(CARGO) test --workspace --locked --lib --bins --tests; \
	fi
	$(CARGO) test --workspace --locked --doc
	cd gateway/web && node --test
	@scripts/check-deploy --quick '$(dir $(BENCH))'

check-deploy: build ## Check manifests, alerts, dashboards and images without a cluster (under 5 minutes)
	@scripts/check-deploy '$(dir $(BENCH))'

check-terraform: ## Check the modules, and that they refuse what they should; needs terraform (3 minutes)
	@scripts/check-terraform '$(or $(CARGO_TARGET_DIR),target)/deploy/terraform'

partition: ## Cut two clouds apart for a minute, then lose one for good; needs root (about 4 minutes)
	@scripts/setup test
	@$(CARGO) build --workspace --bins --locked
	@exec $(BENCH) partition $(PARTITION_ARGS)

chaos: ## Kill everything at random while clients submit, and prove that no accepted job is lost (about 8 minutes)
	@scripts/setup test
	@$(CARGO) build --workspace --bins --locked
	@exec $(BENCH) chaos $(CHAOS_ARGS)

# Both in one build, so that the bench finds the worker beside itself.
bench-worker: ## Measure a job beside the same ffmpeg by hand (about 15 minutes)
	@scripts/setup demo
	@$(CARGO) build --release --locked -p millrace-worker -p millrace-bench
	@exec $(BENCH_RELEASE) worker --data '$(DATA)' --out '$(BENCH_OUT)' $(BENCH_ARGS)

# Both in one build, so that the gateway and the minimal proxy have the same versions and features of everything.
bench-ranges: ## Measure what cutting a long job into ranges costs (about 20 minutes)
	@scripts/setup demo
	@$(CARGO) build --release --locked -p millrace-worker -p millrace-gateway -p millrace-bench
	@exec $(BENCH_RELEASE) ranges --data '$(DATA)' --out '$(BENCH_OUT)' $(BENCH_ARGS)

bench-gateway: ## Measure what a request costs the gateway beside a minimal proxy, nginx, HAProxy and Envoy (2 minutes)
	@scripts/setup bench
	@$(CARGO) build --release --locked -p millrace-gateway -p millrace-bench
	@exec $(BENCH_RELEASE) gateway --out '$(BENCH_OUT)' --peers '$(BENCH_PEERS)' $(BENCH_ARGS)

bench-routing: ## Simulate days of jobs with the real routing code, beside other balancers; measure one decision
	@scripts/setup
	@$(CARGO) build --release -p millrace-bench --locked
	@$(BENCH_RELEASE) simulate --all --out '$(BENCH_OUT)'
	@$(BENCH_RELEASE) pick

postman: ## Write the API's Postman collection anew
	$(CARGO) build --locked -p millrace-gateway
	$(dir $(BENCH))millrace-gateway openapi --postman > docs/millrace.postman_collection.json

fmt: ## Format the code
	$(CARGO) fmt --all

lint: ## Run clippy with warnings as errors
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

clean-data: ## Remove what demo and up keep below DATA, the clip included
	rm -rf -- '$(DATA)/demo' '$(DATA)/up' '$(DATA)/cache'
