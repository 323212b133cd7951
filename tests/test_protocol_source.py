"""The modules of the protocol that are compiled as they stand, and which body of them is run."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

import fastsmtp

FOLDER = pathlib.Path(fastsmtp.__file__).parent / "protocol"
DECLARED = sorted(FOLDER.glob("*.pxd"))


def slots(source: pathlib.Path) -> dict[str, set[str]]:
    """The attributes of each class that has some."""
    found = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__slots__":
                    found[node.name] = set(ast.literal_eval(each.value))
    return found


@pytest.mark.parametrize("path", DECLARED, ids=lambda path: path.stem)
def test_declared_attributes_are_the_slots(path: pathlib.Path) -> None:
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"^cdef class (\w+)", text, re.MULTILINE)
    assert len(names) == 1
    source = path.with_suffix(".py")
    assert set(re.findall(r"^    cdef public [\w ]+ (\w+)$", text, re.MULTILINE)) == slots(source)[names[0]]
    for method in re.findall(r"^    cpdef (\w+)\(", text, re.MULTILINE):
        assert f"    def {method}(" in source.read_text(encoding="utf-8")


def test_there_are_some() -> None:
    assert [path.stem for path in DECLARED] == ["access", "lines", "server"]


def origin(variables: dict[str, str]) -> list[str]:
    code = (
        "from fastsmtp.protocol import access, lines, server\nfor each in (access, lines, server): print(each.__file__)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FASTSMTP_")} | variables
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return [pathlib.Path(line).name for line in done.stdout.splitlines()]


def test_pure_python_is_run_from_its_source() -> None:
    assert origin({"FASTSMTP_PURE": "1"}) == ["access.py", "lines.py", "server.py"]


def test_what_was_compiled_is_run_compiled() -> None:
    ours = tuple(EXTENSION_SUFFIXES[:1])  # other Pythons may have built theirs beside
    compiled = {path.name for path in FOLDER.iterdir() if path.name.endswith(ours)}
    assert {name for name in origin({}) if not name.endswith(".py")} == compiled
