# Daily life.  `make` shows the targets.  PYTHON=python3.13 picks the interpreter, VENV another environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= auto
SECONDS ?= 3600
COMPILED := $(patsubst %.pxd,%.py,$(wildcard src/fastsmtp/protocol/*.pxd))
BUILD_INPUTS := pyproject.toml setup.py $(wildcard src/fastsmtp/*.pyx src/fastsmtp/*.h src/fastsmtp/*.pyi src/fastsmtp/protocol/*.pxd) $(COMPILED)

.PHONY: help serve test test-slow interop soak soak-nightly faults coverage lint types bench bench-smoke wheels ci clean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The package is installed in place, so that only a change of the build's inputs installs it again.
$(VENV)/.installed: $(BUILD_INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[standard,test]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[standard,test,interop,bench,dev]'
	touch $@

# nodemailer, smtp-server and go-smtp are put beside the Python packages; without npm or Go their tests are skipped.
$(VENV)/.installed-interop: $(VENV)/.installed tests/interop/nodemailer/package.json $(wildcard tests/interop/gosmtp/*)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[standard,test,interop]'
	mkdir -p $(VENV)/interop
	cp tests/interop/nodemailer/package.json $(VENV)/interop/
	if command -v npm >/dev/null; then npm install --prefix $(VENV)/interop --no-package-lock --no-audit --no-fund --silent; fi
	if command -v go >/dev/null; then go build -C tests/interop/gosmtp -o "$(abspath $(VENV))/interop/gosmtp" . || echo "go-smtp is not built"; fi
	touch $@

serve: $(VENV)/.installed  ## take mail on 127.0.0.1:8025 into ./Maildir (ARGS="--port 2525 ...")
	$(BIN)/python -m fastsmtp serve $(ARGS)

test: $(VENV)/.installed  ## the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-slow: $(VENV)/.installed  ## kill storms, long runs
	$(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

interop: $(VENV)/.installed-interop  ## against Postfix, swaks, OpenSSL, HAProxy, curl, Node's, Go's and Python's libraries, where they are installed
	$(BIN)/python -m pytest -m interop --timeout 300 $(ARGS)

soak: $(VENV)/.installed  ## honest and hostile clients against the real server for an hour (SECONDS=...)
	$(BIN)/python -m soak --seconds $(SECONDS) $(ARGS)

soak-nightly: SECONDS = 300
soak-nightly: soak  ## the same for five minutes

faults: $(VENV)/.installed  ## system calls that fail, full disks, killed processes, clocks that jump, cut connections; tells how many
	$(BIN)/python -m pytest -m '' -rP --timeout 600 tests/test_faults.py tests/test_cut_off.py tests/test_interposed.py tests/test_disturbed.py $(ARGS)

coverage: $(VENV)/.installed  ## the tests with the coverage of src/fastsmtp
	rm -f .coverage .coverage.*
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml COVERAGE_FILE=$(CURDIR)/.coverage $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

lint: $(VENV)/.installed-dev  ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev  ## mypy --strict, and the stub of the extension against both twins
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fastsmtp._textproto --ignore-missing-stub

bench: $(VENV)/.installed-dev  ## the measurements, against what peers the machine can have
	$(BIN)/python -m bench.e2e $(ARGS)
	$(BIN)/python -m bench.relay
	$(BIN)/python -m bench.micro
	$(BIN)/python -m bench.callgrind

bench-smoke: $(VENV)/.installed-dev  ## a few seconds of the same
	$(BIN)/python -m bench.e2e --smoke $(ARGS)
	$(BIN)/python -m bench.relay --rounds 1 --messages 200 --sessions 5
	$(BIN)/python -m pytest bench -m '' -q --benchmark-min-rounds=2 --benchmark-max-time=0.05

wheels: $(VENV)/.installed-dev  ## sdist, pure wheel and binary wheel in dist/
	rm -rf dist
	$(BIN)/python -m build --sdist --outdir dist .
	FASTSMTP_PURE=1 $(BIN)/python -m build --wheel --outdir dist .
	FASTSMTP_REQUIRE_EXTENSION=1 $(BIN)/python -m build --wheel --outdir dist .

ci:  ## what the gate runs
	bash .ci/run

clean:  ## remove what was built
	rm -rf $(VENV) build dist htmlcov .coverage* src/*.egg-info src/fastsmtp/*.so src/fastsmtp/protocol/*.so src/fastsmtp/_textproto.c
