"""The house: a module imports only from floors below it, or from a room listed before it on its own floor."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys

import pytest

import fastsmtp

SOURCE = pathlib.Path(fastsmtp.__file__).parent

# Rooms by floor, each floor in the order in which its rooms may import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_source", "_version", "limits", "_vocabulary", "errors"),
    ("_textproto", "_textproto_py", "_twin", "_mimeheader", "_textio", "textproto"),
    ("reply", "address", "xtext", "networks", "options", "tracing", "extensions", "sasl"),
    ("protocol",),
    ("message", "session", "observer", "authfile", "tls"),
    ("counters", "rates", "roster", "hooks", "reception", "authentication", "entrance", "holds", "channel", "admission")
    + (
        "connection",
        "server",
        "client_options",
        "dial",
        "client_connection",
        "client_body",
        "client_login",
        "client_base",
    )
    + ("client", "pool"),
    ("delivery",),
    (
        "_arguments",
        "_relayarguments",
        "_passwd",
        "_send",
        "_memory",
        "_logs",
        "_systemd",
        "_board",
        "_listen",
        "_supervise",
        "_metrics",
        "_application",
        "_mailbox",
        "_spools",
        "_deliverylog",
        "_relay",
        "_serve",
        "_managearguments",
        "_manage",
    )
    + ("cli", "__main__"),
)
PLACES = {room: (floor, place) for floor, rooms in enumerate(FLOORS) for place, room in enumerate(rooms)}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py" or path.parent != SOURCE)


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: pathlib.Path) -> set[str]:
    """The rooms that a file imports when it runs."""
    package = ("fastsmtp", *path.relative_to(SOURCE).parts[:-1])
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_type_checking(node):
            assert isinstance(node, ast.If)
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fastsmtp."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            target = (*base, *(node.module or "").split(".")) if node.module else base
            if target[:1] == ("fastsmtp",):
                found.update((target[1],) if len(target) > 1 else (alias.name for alias in node.names))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows_point_down(path: pathlib.Path) -> None:
    room = room_of(path)
    assert room in PLACES, f"{room} is in no floor of this table: which one does it belong to?"
    for target in imports(path) - {room}:
        assert target in PLACES, f"{room} imports {target}, which is in no floor of this table"
        assert PLACES[target] < PLACES[room], f"{room} imports {target}, which is not below it"


def test_the_checker_sees_imports() -> None:
    assert {"protocol", "session", "limits"} <= imports(SOURCE / "channel.py")
    assert "server" not in imports(SOURCE / "channel.py")  # only for type checkers


def run(code: str, *arguments: str) -> None:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    # Where the coverage of processes is measured, that has loaded modules of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_low_floors_load_no_io() -> None:
    rooms = [room for floor in FLOORS[:4] for room in floor if room != "_textproto"]
    names = ", ".join(
        f"'fastsmtp.{room}'" for room in rooms if (SOURCE / f"{room}.py").exists() or (SOURCE / room).is_dir()
    )
    run(
        f"import importlib, sys\nfor name in ({names},): importlib.import_module(name)\n"
        "loaded = {'asyncio', 'socket', 'ssl'} & set(sys.modules)\nassert not loaded, loaded"
    )


# A process for each module, forked from one that has what takes long to load and nothing of ours.
ALONE = """
import asyncio, importlib, logging, os, sqlite3, ssl, sys, traceback

for name in sys.argv[1:]:
    assert not any(each.partition(".")[0] == "fastsmtp" for each in sys.modules)
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException:
            print(f"{name}: {traceback.format_exc()}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow  # seconds for what does not depend on the twin
def test_every_module_can_be_imported_alone() -> None:
    names = []
    for path in FILES:
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] != "__main__":
            names.append(".".join(("fastsmtp", *(parts[:-1] if parts[-1] == "__init__" else parts))))
    assert len(names) > 80
    run(ALONE, *names)
