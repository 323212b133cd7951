"""What docs/ says is so: the tables name what there is, the links lead somewhere, the tests exist, the Python compiles."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import pytest

from fastsmtp.extensions import EXTENSIONS
from fastsmtp.options import ServerOptions

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
