"""Options are validated once, with a text that says what is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fastsmtp import ConfigurationError, DefaultBackend, DefaultSession, Server, ServerOptions
from fastsmtp.options import split_addr


def test_defaults_are_safe() -> None:
    options = ServerOptions()
    assert options.addr.startswith("127.0.0.1:")
    assert options.bare_newlines == "reject"
    for field in dataclasses.fields(options):
        if field.name.startswith("max_") and field.name not in ("max_connections_per_address", "max_connection_rate"):
            assert getattr(options, field.name) > 0, field.name
        if field.name.endswith("timeout"):
            assert getattr(options, field.name) > 0, field.name


@pytest.mark.parametrize(
    "fields",
    [
        {"domain": "no domain"},
        {"domain": ""},
        {"bare_newlines": "perhaps"},
        {"max_message_bytes": -1},
        {"read_timeout": -0.1},
        {"backlog": 0},
        {"addr": "127.0.0.1"},
        {"addr": "127.0.0.1:x"},
        {"addr": "127.0.0.1:65536"},
        {"addr": "::1:25"},
    ],
)
def test_impossible_values(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ServerOptions(**fields)
    with pytest.raises(ConfigurationError):
        Server(DefaultBackend(DefaultSession), **fields)


def test_addresses() -> None:
    assert split_addr(":25") == ("", 25)
    assert split_addr("[::1]:2525") == ("::1", 2525)
    assert split_addr("mail.example:0") == ("mail.example", 0)


def test_options_or_fields() -> None:
    options = ServerOptions(domain="[192.0.2.1]")
    assert Server(DefaultBackend(DefaultSession), options=options).options is options
    with pytest.raises(TypeError):
        Server(DefaultBackend(DefaultSession), options=options, lmtp=True)
    with pytest.raises(TypeError):
        Server(DefaultBackend(DefaultSession), no_such_option=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.domain = "x"  # type: ignore[misc]
