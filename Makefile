# `make test` and `make demo` work on a fresh machine: Rust, a C compiler, Python with pip and apt are
# all they need. See scripts/tools.sh for what they get and where it is put.

CARGO ?= cargo
MUSL := $(shell uname -m)-unknown-linux-musl
TAG ?= wasmferry:dev

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

.PHONY: build
build: ## A debug build
	$(CARGO) build --locked

.PHONY: test
# Of the machine against its model, between them all; a plain `cargo test` runs fewer.
test: export WASMFERRY_SEQUENCES ?= 100000
test: tools ## Unit and integration tests, with the real Envoy and the real registry
	$(CARGO) test --locked

.PHONY: soak
soak: ## 1,000 times kill -9 in one store, and many more crashes of the machine
	WASMFERRY_KILLS=$${WASMFERRY_KILLS:-1000} $(CARGO) test --locked --test it killed:: -- --nocapture
	WASMFERRY_CRASHES=$${WASMFERRY_CRASHES:-5000} $(CARGO) test --locked --lib store::tests::crash:: -- --nocapture

.PHONY: lint
lint: ## Formatting and clippy
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- --deny warnings
	@# As it is released: without the features that the tests' own dependencies turn on.
	$(CARGO) clippy --locked -- --deny warnings

.PHONY: deny
deny: ## Licences, bans and sources of the dependencies
	scripts/tools.sh deny
	.tools/bin/cargo-deny --locked check --hide-inclusion-graph bans licenses sources

.PHONY: demo
demo: ## Envoy runs a filter out of a registry, and its second version without a failed request
	scripts/tools.sh envoy registry curl
	$(CARGO) build --locked --release
	demo/run.sh

.PHONY: bench
bench: static ## Speed, memory and size of the static binary, beside a bare relay, skopeo and curl
	scripts/tools.sh envoy registry skopeo curl
	WASMFERRY=$(CURDIR)/target/$(MUSL)/release/wasmferry $(CARGO) bench --locked --bench bench

.PHONY: static
static: ## A static release binary, under target/*-linux-musl/release/
	scripts/tools.sh musl
	$(CARGO) build --locked --release --target $(MUSL)

.PHONY: image
image: static ## A container image of the static binary, by buildah
	scripts/tools.sh buildah
	scripts/image.sh target/$(MUSL)/release/wasmferry $(TAG)

.PHONY: tools
tools: ## Envoy and the registry, into .tools/
	scripts/tools.sh envoy registry
