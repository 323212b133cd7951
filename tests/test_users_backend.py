"""UsersBackend: whom a file of users lets in, in front of any backend."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from fastsmtp import AuthRequired, ConnectionState, DefaultBackend, DefaultSession
from fastsmtp.authfile import AuthFile
from fastsmtp.delivery import UsersBackend
from fastsmtp.sasl import ExternalCredentials, PlainCredentials, ScramCredentials
from fastsmtp.session import Backend

FEW = 4096  # rounds


class Asynchronous:
    """A backend whose sessions have to be awaited."""

    async def anonymous_login(self, state: ConnectionState) -> DefaultSession:
        await asyncio.sleep(0)
        return DefaultSession()

    def login(self, state: ConnectionState, username: str, password: str) -> None:
        raise AssertionError("UsersBackend decides who it is")


BACKENDS: list[Callable[[], Backend]] = [lambda: DefaultBackend(DefaultSession), Asynchronous]


def state(username: str = "") -> ConnectionState:
    return ConnectionState("x.example", ("192.0.2.1", 1), ("192.0.2.2", 25), None, "ESMTP", username)


@pytest.fixture(params=BACKENDS, ids=["plain", "async"])
def users(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> UsersBackend:
    file = AuthFile(tmp_path / "users", missing_ok=True)
    file.add("anna", "right", iterations=FEW)
    return UsersBackend(request.param(), file)


def authenticated(users: UsersBackend, credentials: Any) -> bool:
    async def main() -> bool:
        try:
            session = await users.authenticate(state(), credentials)
            return isinstance(session, DefaultSession)
        finally:
            users.users.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("authzid", "authcid", "password", "expected"),
    [
        ("", "anna", "right", True),
        ("anna", "anna", "right", True),
        ("", "anna", "wrong", False),
        ("", "anna", "", False),
        ("", "bert", "right", False),
        ("bert", "anna", "right", False),  # nobody may act for another
    ],
)
def test_passwords(users: UsersBackend, authzid: str, authcid: str, password: str, expected: bool) -> None:
    assert authenticated(users, PlainCredentials(authzid, authcid, password)) is expected


def test_a_proof_of_scram_is_enough_and_other_credentials_are_not(users: UsersBackend) -> None:
    assert authenticated(users, ScramCredentials("anna"))
    assert not authenticated(users, ExternalCredentials("anna"))


def test_scram_gets_what_is_stored_and_always_the_same_for_nobody(users: UsersBackend) -> None:
    assert users.scram_secret(state(), "anna").verify("right")
    assert users.scram_secret(state(), "bert") == users.scram_secret(state(), "bert")
    assert not users.scram_secret(state(), "bert").verify("right")


def test_who_has_not_logged_in(users: UsersBackend) -> None:
    async def session(backend: UsersBackend, state: ConnectionState) -> object:
        result = backend.anonymous_login(state)
        return await result if asyncio.iscoroutine(result) else result

    assert isinstance(asyncio.run(session(users, state())), DefaultSession)
    strict = UsersBackend(users.backend, users.users, required=True)
    with pytest.raises(AuthRequired):
        strict.anonymous_login(state())
    # A trusted peer has said by XCLIENT who has logged in with it.
    assert isinstance(asyncio.run(session(strict, state("anna"))), DefaultSession)


def test_sessions_at_connect_are_the_backends_unless_a_login_is_required(users: UsersBackend) -> None:
    assert users.session_on_connect is isinstance(users.backend, DefaultBackend)
    assert not UsersBackend(users.backend, users.users, required=True).session_on_connect
