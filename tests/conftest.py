"""What all tests share: which twin they run on, and Hypothesis without a clock."""

from __future__ import annotations

import importlib.util
import os

import hypothesis
import pytest

import fastsmtp

from .loops import LOOPS, Runner, runner

# Timing never decides a test: the machines are shared.
hypothesis.settings.register_profile("fastsmtp", deadline=None, print_blob=True)
hypothesis.settings.load_profile("fastsmtp")


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Runner:
    """Runs a coroutine function, once on each loop."""
    return runner(request.param)


def pytest_report_header(config: pytest.Config) -> str:
    uvloop = "with" if importlib.util.find_spec("uvloop") else "without"
    return f"fastsmtp: {fastsmtp.IMPLEMENTATION}, {uvloop} uvloop"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"fastsmtp ran on its {fastsmtp.IMPLEMENTATION} twin")


def pytest_sessionstart(session: pytest.Session) -> None:
    wanted = "pure" if os.environ.get("FASTSMTP_PURE") == "1" else None
    if os.environ.get("FASTSMTP_REQUIRE_EXTENSION") == "1":
        wanted = "cython"
    if wanted is not None and wanted != fastsmtp.IMPLEMENTATION:
        raise pytest.UsageError(f"the {wanted} twin was asked for, {fastsmtp.IMPLEMENTATION} is loaded")
