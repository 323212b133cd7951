"""The harnesses of `fuzz/`: their corpus, and a few executions of each with a fixed seed; `make fuzz` runs them for long."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from fuzz import client, guided, server, twins
from fuzz.engine import Failure, Play, generator, main, work

import fastsmtp

ROOT = pathlib.Path(guided.__file__).parent.parent
COMPILED = importlib.util.find_spec("fastsmtp._textproto") is not None
both = pytest.mark.skipif(not COMPILED, reason="no extension was built")


@pytest.mark.parametrize("target", guided.TARGETS)
def test_corpus(target: str) -> None:
    assert guided.replay(target) >= 10


def test_corpus_is_small() -> None:
    assert sum(file.stat().st_size for file in guided.CORPUS.rglob("*") if file.is_file()) < 1_000_000


@pytest.mark.parametrize(
    "play", [pytest.param(twins.play, marks=both), server.play, client.play], ids=["twins", "server", "client"]
)
def test_short(play: Play) -> None:
    counts = work(play, 20261125, 0, 0.03)
    assert counts.total() > 100


def test_what_a_harness_finds_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def play(rng: object, size: float) -> object:
        raise Failure("found")

    with pytest.raises(Failure, match="found") as caught:
        main(play, "nothing", ["--seed", "7", "--executions", "5"])  # type: ignore[arg-type]
    assert caught.value.__notes__ == ["again by: --seed 7 --round 0 --size 1.0"]
    capsys.readouterr()


def test_rounds_are_the_same_again() -> None:
    first, second = (server.play(generator(3, 1), 0.01) for _ in range(2))
    assert first == second
    assert generator(3, 1).random() != generator(3, 2).random()


def grow(twin: str, executions: int) -> None:
    variables = {**os.environ, "FASTSMTP_PURE": "1" if twin == "pure" else "", "FASTSMTP_REQUIRE_EXTENSION": ""}
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    variables["PYTHONPATH"] = path
    command = [sys.executable, "-m", "fuzz.growth", twin, str(executions)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_grows() -> None:
    grow(fastsmtp.IMPLEMENTATION, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("twin", ["pure", pytest.param("cython", marks=both)])
def test_nothing_grows_over_a_million(twin: str) -> None:
    grow(twin, 1_000_000)


@pytest.mark.parametrize(
    "form", ["", "-DFASTSMTP_SCAN_VECTOR", "-DFASTSMTP_SCAN_WORD"], ids=["native", "vector", "word"]
)
def test_the_dot_scanner_in_each_form(form: str, tmp_path: pathlib.Path) -> None:
    """The C of `_dotscan.h` against the same octet by octet, under sanitizers where the compiler has them."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler")
    program = tmp_path / "dotscan"
    source = [str(ROOT / "fuzz" / "dotscan.c"), "-I", str(ROOT / "src" / "fastsmtp"), "-o", str(program)]
    options = ["-O1", "-g", "-DREPLAY", *filter(None, [form])]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    for sanitizers in (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], []):
        built = subprocess.run(
            [compiler, *options, *sanitizers, *source], env=environment, capture_output=True, check=False
        )
        if built.returncode == 0:
            break
    if built.returncode != 0:
        pytest.skip("no C compiler that works")
    inputs = sorted(str(file) for file in (guided.CORPUS / "dotscan").iterdir())
    done = subprocess.run([program, *inputs], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{len(inputs)} inputs\n"), done.stderr
    assert len(inputs) > 50
