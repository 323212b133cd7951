"""The modules that are compiled as they stand: what their `.pxd` says of them, and which body is run."""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any

import pytest

import fastsmtp
from fastsmtp import Conn, DataReader, DefaultBackend, DefaultSession, Server

SOURCE = pathlib.Path(fastsmtp.__file__).parent
DECLARED = sorted(SOURCE.rglob("*.pxd"))
MODULES = [".".join(("fastsmtp", *path.relative_to(SOURCE).with_suffix("").parts)) for path in DECLARED]


def name_of(path: pathlib.Path) -> str:
    return path.stem


def classes(path: pathlib.Path) -> Iterator[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """Each class that a `.pxd` declares, with its attributes and its methods and their arguments."""
    for block in re.split(r"^(?=cdef class )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name = re.match(r"cdef class (\w+)", block)
        assert name is not None
        attributes = re.findall(r"^    cdef public [\w ]+ (\w+)$", block, re.MULTILINE)
        yield name[1], attributes, declared_functions(block, "    ")


def declared_functions(text: str, indentation: str) -> list[tuple[str, list[str]]]:
    found = re.findall(rf"^{indentation}cpdef (?:\w+ )?(\w+)\((.*)\)$", text, re.MULTILINE)
    return [
        (name, [each.split()[-1].removesuffix("=*") for each in given.split(", ") if each]) for name, given in found
    ]


def arguments(node: ast.FunctionDef) -> list[str]:
    return [each.arg for each in node.args.args]


def slots(node: ast.ClassDef) -> list[str]:
    """The attributes of a class: its slots, or the fields of a dataclass, whose order counts."""
    for each in node.body:
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__slots__":
            return sorted(ast.literal_eval(each.value))
    return [ast.unparse(each.target) for each in node.body if isinstance(each, ast.AnnAssign)]


@pytest.mark.parametrize("path", DECLARED, ids=name_of)
def test_what_is_declared_is_there(path: pathlib.Path) -> None:
    tree = ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    seen = 0
    for name, attributes, methods in classes(path):
        expected = slots(defined[name])
        decorated = bool(defined[name].decorator_list)
        assert (attributes if decorated else sorted(attributes)) == expected
        given = {node.name: arguments(node) for node in defined[name].body if isinstance(node, ast.FunctionDef)}
        assert {method: given.get(method) for method, _ in methods} == dict(methods)
        seen += 1
    functions = {node.name: arguments(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    declared = declared_functions(path.read_text(encoding="utf-8"), "")
    assert {function: functions.get(function) for function, _ in declared} == dict(declared)
    assert seen or declared


@pytest.mark.parametrize("path", DECLARED, ids=name_of)
def test_numbers_that_are_declared_are_imported(path: pathlib.Path) -> None:
    """A C variable that nothing sets would be 0."""
    tree = ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    for line in re.findall(r"^cdef Py_ssize_t (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        assert set(line.split(", ")) <= imported


def test_there_are_some() -> None:
    assert {"fastsmtp.connection", "fastsmtp.protocol.server"} <= set(MODULES)


def origins(variables: dict[str, str]) -> list[str]:
    code = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FASTSMTP_")} | variables
    command = [sys.executable, "-c", code, *MODULES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [pathlib.Path(line).name for line in done.stdout.splitlines()]


def test_pure_python_is_run_from_its_source() -> None:
    assert origins({"FASTSMTP_PURE": "1"}) == [path.with_suffix(".py").name for path in DECLARED]


def test_what_was_compiled_is_run_compiled() -> None:
    ours = EXTENSION_SUFFIXES[0]  # other Pythons may have built theirs beside
    built = [path.with_suffix(ours) for path in DECLARED]
    assert origins({}) == [(path if path.exists() else path.with_suffix("").with_suffix(".py")).name for path in built]


def test_all_or_none_are_compiled() -> None:
    compiled = [name for name in origins({}) if not name.endswith(".py")]
    assert len(compiled) in (0, len(DECLARED))


def test_none_where_something_was_expected_is_an_error() -> None:
    """Compiled without a look at each, it would be a read from anywhere."""
    loop: Any = None
    conn: Any = Conn(Server(DefaultBackend(DefaultSession)), loop)
    conn._core = None
    with pytest.raises(AttributeError, match="receive_data"):
        conn.data_received(b"NOOP\r\n")


def test_signatures_can_be_looked_up() -> None:
    assert list(inspect.signature(DataReader.read).parameters) == ["self", "n"]


def test_something_else_than_was_declared_is_an_error() -> None:
    loop: Any = None
    conn: Any = Conn(Server(DefaultBackend(DefaultSession)), loop)
    compiled = not str(sys.modules[Conn.__module__].__file__).endswith(".py")
    with pytest.raises(TypeError) if compiled else contextlib.nullcontext():
        conn._core = object()
