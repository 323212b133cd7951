"""The peers: what each can do, what it needs, how it is built and started.  Their programs are in bench/peers/.

What is built is kept in bench/peers/build/ and built again when its sources change.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["PEERS", "BuildError", "Peer", "Setup", "go", "tool"]

HERE = pathlib.Path(__file__).parent / "peers"
BUILD = HERE / "build"


class BuildError(Exception):
    """A peer could not be built; says why."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a server is asked to be."""

    port: int
    tls: pathlib.Path | None = None  # a certificate with its key: offer STARTTLS
    lmtp: bool = False
    auth: bool = False
    workers: int = 1
    store: pathlib.Path | None = None  # an empty directory on the disk, for what is durable

    @property
    def flags(self) -> list[str]:
        """The options that the programs in bench/peers/ share."""
        flags = ["--tls", str(self.tls)] if self.tls else []
        return flags + ["--lmtp"] * self.lmtp + ["--auth"] * self.auth


@dataclass(frozen=True, slots=True)
class Peer:
    """A server beside others.

    Attributes:
        name: as in the tables.
        kind: which workloads it is for: "discard" for most, "hooks" for fastsmtp's other ways, "durable", "workers".
        can: of "tls", "lmtp", "bdat", "auth": what else than mail by SMTP it takes.
        command: how it is started.
        missing: why the machine cannot have it, or None.
        build: makes what `command` starts; raises BuildError.
        built: whether `build` has nothing to do.
        share: of a workload's messages, less for who is so slow that they would take all the time.
    """

    name: str
    kind: frozenset[str]
    can: frozenset[str]
    command: Callable[[Setup], list[str]]
    missing: Callable[[], str | None]
    build: Callable[[], None] | None = None
    built: Callable[[], bool] = field(default=lambda: True)
    share: float = 1.0


def tool(name: str) -> str | None:
    """The path of a program, daemons' directories included."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def go() -> str | None:
    """Go's command, also where its own installer puts it without touching PATH."""
    return tool("go") or shutil.which("/usr/local/go/bin/go")


def _needs(
    *, modules: tuple[str, ...] = (), programs: tuple[str, ...] = (), root: bool = False
) -> Callable[[], str | None]:
    def missing() -> str | None:
        for module in modules:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        for program in programs:
            if (go() if program == "go" else tool(program)) is None:
                return f"{program} is not installed"
        return "only root can start it" if root and os.geteuid() != 0 else None

    return missing


def _python(name: str, *arguments: str) -> Callable[[Setup], list[str]]:
    return lambda setup: [sys.executable, str(HERE / name), str(setup.port), *arguments, *setup.flags]


def _durable(kind: str) -> Callable[[Setup], list[str]]:
    return lambda setup: [sys.executable, str(HERE / "fastsmtp_durable.py"), str(setup.port), kind, str(setup.store)]


def _workers(setup: Setup) -> list[str]:
    serve = [sys.executable, "-m", "fastsmtp", "serve", "--discard", "--port", str(setup.port)]
    return [*serve, "--workers", str(setup.workers), "--max-connections", "20000"]


def _smtp_sink(setup: Setup) -> list[str]:
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    lmtp = ["-L"] if setup.lmtp else []
    return [tool("smtp-sink") or "smtp-sink", *user, *lmtp, "-m", "20000", f"127.0.0.1:{setup.port}", "4096"]


def _run(command: list[str], folder: pathlib.Path, seconds: float = 300) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(str(error)) from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise BuildError(f"{' '.join(command[:3])}: {lines[-1] if lines else done.returncode}")


def _newer(product: pathlib.Path, *sources: pathlib.Path) -> bool:
    if not product.exists():
        return False
    return all(source.stat().st_mtime <= product.stat().st_mtime for source in sources)


EPOLL = BUILD / "epoll_sink"
GO = BUILD / "gosmtp"
NODE = BUILD / "nodesmtp"
NODE_DONE = NODE / "node_modules" / ".package-lock.json"  # npm writes it last


def _epoll_built() -> bool:
    return _newer(EPOLL, HERE / "epoll_sink.c")


def _build_epoll() -> None:
    BUILD.mkdir(exist_ok=True)
    _run(["cc", "-O2", "-o", str(EPOLL), str(HERE / "epoll_sink.c")], HERE)


def _go_built() -> bool:
    return _newer(GO, *(HERE / "gosmtp" / name for name in ("main.go", "go.mod", "go.sum")))


def _build_go() -> None:
    BUILD.mkdir(exist_ok=True)
    _run([go() or "go", "build", "-o", str(GO), "."], HERE / "gosmtp")


def _node_built() -> bool:
    return _newer(NODE_DONE, *(HERE / "nodesmtp" / name for name in ("server.js", "package.json", "package-lock.json")))


def _build_node() -> None:
    BUILD.mkdir(exist_ok=True)
    shutil.copytree(HERE / "nodesmtp", NODE, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    _run([tool("npm") or "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], NODE)
    NODE_DONE.touch()


_DISCARD = frozenset({"discard"})
_HOOKS = frozenset({"hooks"})
_ALL = frozenset({"tls", "lmtp", "bdat", "auth"})


def _fastsmtp(name: str, kind: frozenset[str], loop: str, hooks: str) -> Peer:
    command = _python("fastsmtp_discard.py", "--loop", loop, "--hooks", hooks)
    return Peer(name, kind, _ALL, command, _needs(modules=("uvloop",) if loop == "uvloop" else ()))


def _aiosmtpd(loop: str) -> Peer:
    modules = ("aiosmtpd", "uvloop") if loop == "uvloop" else ("aiosmtpd",)
    command = _python("aiosmtpd_discard.py", "--loop", loop)
    return Peer(f"aiosmtpd {loop}", _DISCARD, _ALL - {"bdat"}, command, _needs(modules=modules), share=0.25)


PEERS = (
    _fastsmtp("fastsmtp uvloop", _DISCARD | _HOOKS, "uvloop", "plain"),
    _fastsmtp("fastsmtp asyncio", _DISCARD | _HOOKS, "asyncio", "plain"),
    _fastsmtp("fastsmtp async hooks", _HOOKS, "uvloop", "async"),
    _fastsmtp("fastsmtp streaming hook", _HOOKS, "uvloop", "stream"),
    _fastsmtp("fastsmtp joining hook", _HOOKS | {"large"}, "uvloop", "whole"),
    _fastsmtp("fastsmtp traced", _HOOKS, "uvloop", "traced"),
    Peer("fastsmtp serve", frozenset({"workers"}), frozenset(), _workers, _needs(modules=("uvloop",))),
    Peer("fastsmtp queue", frozenset({"durable"}), frozenset(), _durable("queue"), _needs(modules=("uvloop",))),
    Peer("fastsmtp Maildir", frozenset({"durable"}), frozenset(), _durable("maildir"), _needs(modules=("uvloop",))),
    Peer(
        "epoll loop (C)",
        _DISCARD,
        _ALL - {"tls"},
        lambda setup: [str(EPOLL), str(setup.port), *setup.flags],
        _needs(programs=("cc",)),
        _build_epoll,
        _epoll_built,
    ),
    Peer("smtp-sink (C)", _DISCARD, frozenset({"lmtp"}), _smtp_sink, _needs(programs=("smtp-sink",))),
    Peer(
        "go-smtp (Go)",
        _DISCARD | {"workers"},
        _ALL,
        lambda setup: [str(GO), str(setup.port), *setup.flags],
        _needs(programs=("go",)),
        _build_go,
        _go_built,
    ),
    Peer(
        "smtp-server (Node)",
        _DISCARD,
        _ALL - {"bdat"},
        lambda setup: ["node", str(NODE / "server.js"), str(setup.port), *setup.flags],
        _needs(programs=("node", "npm")),
        _build_node,
        _node_built,
    ),
    _aiosmtpd("uvloop"),
    _aiosmtpd("asyncio"),
    Peer(
        "Postfix",
        frozenset({"durable"}),
        frozenset(),
        lambda setup: [sys.executable, str(HERE / "postfix_queue.py"), str(setup.port), str(setup.store)],
        _needs(programs=("postfix",), root=True),
        share=0.25,
    ),
)
"""In the order of the tables; the first that is there is the one that others are compared with."""
