# Each target is a command or two; what they do is in the scripts and crates they name.

.PHONY: help setup build demo serve test test-v2 bench bench-images lint fmt

help:            ## Show this list.
	@sed -n 's/^\([a-z0-9-]*\): .*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup:           ## Install what is missing to build and test.
	@packaging/setup

build: setup     ## Build the release binary, target/release/lazaret.
	cargo build --release --locked

demo: build      ## Start a server, run real jobs over HTTP, stop.
	@packaging/demo

serve: build     ## Start a server on 127.0.0.1:8080 and leave it running.
	target/release/lazaret serve

test: setup      ## Run every test, also under a pure cgroup v2 kernel.
	cargo test --workspace --locked
	tests/sandbox-v2

test-v2: setup   ## Run the sandbox's tests under pure cgroup v2 kernels only.
	tests/sandbox-v2

bench: build     ## Measure, and write bench/results.md.
	loadtest/bench

bench-images: build ## Measure pulls and layers, and write bench/images.md.
	loadtest/bench-images

lint: setup      ## Check formatting and lints, warnings being errors.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

fmt:             ## Format the code.
	cargo fmt --all
