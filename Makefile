# Daily life.  `make` shows the targets.  PYTHON=python3.13 picks the interpreter, VENV another environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= auto
SECONDS ?= 3600
DECLARED := $(wildcard src/fastsmtp/*.pxd src/fastsmtp/protocol/*.pxd)
COMPILED := $(patsubst %.pxd,%.py,$(DECLARED))
BUILD_INPUTS := pyproject.toml setup.py $(wildcard src/fastsmtp/*.pyx src/fastsmtp/*.h src/fastsmtp/*.pyi) $(DECLARED) $(COMPILED)

.PHONY: help serve test test-slow interop soak soak-nightly mutants faults coverage lint types bench bench-smoke fuzz fuzz-smoke sanitize sanitize-smoke wheels ci clean

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

mutants: $(VENV)/.installed  ## altered dialogues at random against the real server, beside honest clients (SECONDS=...)
	$(BIN)/python -m soak --mutants --crowd 0 --rate 10 --seconds $(SECONDS) $(ARGS)

faults: $(VENV)/.installed  ## system calls that fail, full disks, killed processes, clocks that jump, cut connections; tells how many
	$(BIN)/python -m pytest -m '' -rP --show-capture=stdout --timeout 600 tests/test_faults.py tests/test_hook_faults.py tests/test_cut_off.py tests/test_interposed.py tests/test_disturbed.py $(ARGS)

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

# Fuzzers under the compiler's sanitizers; clang has libFuzzer.
build/fuzz/dotscan%: fuzz/dotscan.c src/fastsmtp/_dotscan.h
	mkdir -p build/fuzz
	clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DFASTSMTP_SCAN$(subst -,_,$*) -I src/fastsmtp fuzz/dotscan.c -o $@

DOTSCAN := build/fuzz/dotscan-NATIVE build/fuzz/dotscan-VECTOR build/fuzz/dotscan-WORD

fuzz: $(VENV)/.installed-dev $(DOTSCAN)  ## each harness for SECONDS, and coverage-guided where there is atheris
	$(BIN)/python -m fuzz.twins --jobs 0 --seconds $(SECONDS) $(ARGS)
	$(BIN)/python -m fuzz.server --jobs 0 --seconds $(SECONDS) $(ARGS)
	$(BIN)/python -m fuzz.client --jobs 0 --seconds $(SECONDS) $(ARGS)
	mkdir -p build/fuzz/found && for form in $(DOTSCAN); do \
	    $$form -max_total_time=$(SECONDS) -max_len=700 -print_final_stats=1 build/fuzz/found fuzz/corpus/dotscan || exit 1; done
	if ! $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: 'atheris>=3'; then \
	    echo "no atheris for this interpreter: the rest is skipped"; exit 0; fi; \
	for target in server client proxy text address; do \
	    mkdir -p build/fuzz/found-$$target && FASTSMTP_PURE=1 $(BIN)/python -m fuzz.guided $$target -max_total_time=$(SECONDS) -max_len=600 -rss_limit_mb=0 \
	        -print_final_stats=1 build/fuzz/found-$$target fuzz/corpus/$$target || exit 1; done

fuzz-smoke: $(VENV)/.installed-dev $(DOTSCAN)  ## a few seconds of the same, always the same ones
	$(BIN)/python -m fuzz.twins --jobs 2 --seed 1 --seconds 15 --size 0.3
	$(BIN)/python -m fuzz.server --jobs 2 --seed 1 --seconds 15 --size 0.3
	$(BIN)/python -m fuzz.client --jobs 2 --seed 1 --seconds 10 --size 0.3
	mkdir -p build/fuzz/found && for form in $(DOTSCAN); do \
	    $$form -max_total_time=3 -max_len=700 -verbosity=0 -print_final_stats=1 build/fuzz/found fuzz/corpus/dotscan || exit 1; done

sanitize: $(VENV)/.installed-dev  ## the tests on an extension under sanitizers, and on one with all of Cython's checks
	$(BIN)/python -m fuzz.variants sanitized -m pytest -n $(JOBS) $(ARGS)
	$(BIN)/python -m fuzz.variants checked -m pytest -n $(JOBS) $(ARGS)

SANITIZED := tests/test_textproto.py tests/test_textproto_twins.py tests/test_textproto_properties.py tests/test_dialogues.py \
    tests/test_protocol.py tests/test_protocol_both.py tests/test_protocol_client.py tests/test_chunks.py tests/test_address.py tests/test_reply.py

sanitize-smoke: $(VENV)/.installed-dev  ## the same with a part of the tests, the corpus and some seconds of the harnesses
	for variant in sanitized checked; do \
	    $(BIN)/python -m fuzz.variants $$variant -m pytest -n $(JOBS) $(ARGS) $(SANITIZED) tests/test_fuzz.py && \
	    $(BIN)/python -m fuzz.variants $$variant -m fuzz.twins --seed 1 --seconds 10 --size 0.1 || exit 1; done

wheels: $(VENV)/.installed-dev  ## sdist, pure wheel and binary wheel in dist/
	rm -rf dist
	$(BIN)/python -m build --sdist --outdir dist .
	FASTSMTP_PURE=1 $(BIN)/python -m build --wheel --outdir dist .
	FASTSMTP_REQUIRE_EXTENSION=1 $(BIN)/python -m build --wheel --outdir dist .

ci:  ## what the gate runs
	bash .ci/run

clean:  ## remove what was built
	rm -rf $(VENV) build dist htmlcov .coverage* src/*.egg-info src/fastsmtp/*.so src/fastsmtp/protocol/*.so src/fastsmtp/_textproto.c
