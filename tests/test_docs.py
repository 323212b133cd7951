"""What docs/ says is so: the tables name what there is, the links lead somewhere, the tests exist, the Python compiles."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import pathlib
import re

import pytest

from fastsmtp import AuthFile, ClientOptions, Pool, Timeouts, limits
from fastsmtp.delivery import relay, schedule, worker
from fastsmtp.delivery.notices import Notices
from fastsmtp.delivery.queue import PostgresQueue, SQLiteQueue
from fastsmtp.extensions import EXTENSIONS
from fastsmtp.options import ServerOptions
from fastsmtp.protocol.proxy import ProxyReader
from fastsmtp.sasl import mechanism

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
DOCS = "\n".join(path.read_text() for path in PAGES)


def rows(page: str) -> list[list[str]]:
    """The cells of each line of the page's tables."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: pathlib.Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_compiles(path: pathlib.Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        compile(code, str(path), "exec")


def test_every_page_can_be_found() -> None:
    for path in ROOT.glob("docs/*.md"):
        if path.name != "index.md":
            assert f"({path.name})" in (ROOT / "docs" / "index.md").read_text(), path.name


def test_every_extension_is_in_the_table() -> None:
    table = {row[0]: row[1] for row in rows("extensions.md")}
    for extension in EXTENSIONS:
        assert table.get(extension.keyword, "").startswith(extension.source), extension.keyword


def test_every_option_is_explained() -> None:
    for field in dataclasses.fields(ServerOptions):
        assert f"`{field.name}`" in DOCS, field.name
        assert re.search(rf"^ +{field.name}: ", ServerOptions.__doc__ or "", re.MULTILINE), field.name


def test_rfcs_name_tests_that_exist() -> None:
    table = rows("rfcs.md")
    named = {row[0] for row in table}
    for row in table[1:]:
        tests = re.findall(r"`([\w./*-]+)`", row[3])
        assert tests, row
        for test in tests:
            assert list(ROOT.glob(f"tests/{test}")), test
    for extension in EXTENSIONS:
        if extension.source.startswith("RFC"):
            assert extension.source in named, extension.source


# What is promised, and what it is held to


@functools.cache
def functions_of(name: str) -> dict[str, str]:
    """The tests in a file and what each says of itself; nothing if there is no such file."""
    path = ROOT / "tests" / name
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_docstring(node) or "" for node in functions if node.name.startswith("test_")}


def shown_by(cell: str) -> list[tuple[str, str]]:
    """The tests that a cell names, which are there: file and function, which a dialogue has none of."""
    named = re.findall(r"`([^`]+)`", cell)
    assert named and re.sub(r"`[^`]+`|\s", "", cell) == "", cell
    found = []
    for each in named:
        file, _, function = each.partition("::")
        if file.startswith("dialogues/"):
            assert (ROOT / "tests" / file).exists() and not function, each
        else:
            assert function in functions_of(file), each
        found.append((file, function))
    return found


def test_promises_name_tests_that_exist() -> None:
    table = [row for row in rows("threats.md") if len(row) == 2 and row[1] != "shown by"]
    assert len(table) > 90 and len({promise for promise, _ in table}) == len(table)
    for promise, cell in table:
        assert promise and shown_by(cell), promise


def test_advisories_and_their_tests_agree() -> None:
    """Each class has its row, and what the row cites the test does."""
    table = [row for row in rows("threats.md") if len(row) == 3 and row[2] != "shown by"]
    named = set()
    for kind, sources, cell in table:
        assert kind and re.match(r"CVE-|CWE-|GHSA-|VU#|RFC |XCLIENT_", sources), kind
        texts = []
        for file, function in shown_by(cell):
            named.add((file, function))
            if file == "test_advisories.py":
                texts.append(functions_of(file)[function])
        for source in sources.split(", ") if texts else ():
            assert any(source in text for text in texts), (kind, source)
    for function, text in functions_of("test_advisories.py").items():
        assert ("test_advisories.py", function) in named, function
        assert text, function


UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "min": 60, "h": 3600, "d": 86400}


def default_of(cell: str) -> float:
    """The number in a table; 0 is none."""
    if cell == "none":
        return 0
    match = re.fullmatch(r"([\d,.]+)(?: (KiB|MiB|min|h|d)| octets| octets/s| s)?", cell)
    assert match is not None, cell
    return float(match[1].replace(",", "")) * UNITS[match[2] or ""]


def limits_of_the_code() -> dict[str, float]:
    """Every limit by its name, with its default."""
    found = {f"limits.{name}": getattr(limits, name) for name in limits.__all__}
    found |= {f"mechanism.{name}": getattr(mechanism, name) for name in ("RESPONSE", "FIELD")}
    for values in (ServerOptions, ClientOptions, Timeouts):
        for field in dataclasses.fields(values):
            if field.type in ("int", "float") and field.name != "port":
                found[f"{values.__name__}.{field.name}"] = field.default
    for kind in (
        *(AuthFile, Pool, SQLiteQueue, PostgresQueue, Notices, ProxyReader),
        *(worker.DeliveryWorker, relay.RelayBackend, schedule.Schedule),
    ):
        for name, parameter in inspect.signature(kind).parameters.items():
            if str(parameter.annotation).startswith(("int", "float")):
                found[f"{kind.__name__}.{name}"] = parameter.default or 0
    return found


def test_every_limit_is_in_the_table_with_its_default_and_a_test() -> None:
    expected = limits_of_the_code()
    assert len(expected) > 80
    seen = set()
    for names, default, why, _, cell in (row for row in rows("security.md") if len(row) == 5 and row[0] != "limit"):
        assert why and shown_by(cell), names
        for name in re.findall(r"`([\w.]+)`", names):
            assert expected.get(name) == pytest.approx(default_of(default)), name
            assert name not in seen, name
            seen.add(name)
    assert seen == set(expected)
