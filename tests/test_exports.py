"""The names that others rely on."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import fastsmtp

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fastsmtp.__path__, "fastsmtp.")
    if not module.name.endswith("__main__")
)
SESSION_API = """Backend Session SessionFactory DefaultBackend DefaultSession DataReader DataContext Conn ConnectionState Reply
EnhancedCode SMTPError AuthRequired AuthUnsupported DataTooLarge ServerOptions Server""".split()
TEXT_API = """canonical_mime_header_key Reader Writer Pipeline TextConn MIMEHeader ProtocolError ResponseError decode_dot encode_dot
parse_mime_header parse_response DotDecoder DotEncoder IMPLEMENTATION""".split()
CLIENT_API = "Client ClientOptions Timeouts send_mail Pool Delivery ConnectionLost TimedOut TLSFailed".split()
MEMBERS = {
    "Client": """connect hello start_tls login auth extension supports_auth max_message_size tls_connection_state verify mail rcpt data
        send_message reset noop quit close wait_closed xforward xclient expand help command""",
    "Pool": "connection send_message close",
    "Conn": "close read_line reject server session set_session state tls_connection_state write_response",
    "Server": "listen_and_serve serve for_each_conn close shutdown start serve_forever wait_closed sockets port",
    "DataContext": "set_status set_smtp_response start_delivery helo",
    "DataReader": "read size __aiter__",
    "DefaultSession": "reset logout mail rcpt data",
    "DefaultBackend": "login anonymous_login",
    "ConnectionState": "hostname remote_addr tls",
    "SMTPError": "code enhanced_code message from_reply temporary",
}


@pytest.mark.parametrize("name", SESSION_API)
def test_session_api(name: str) -> None:
    assert name in fastsmtp.__all__
    assert getattr(fastsmtp, name).__module__.startswith("fastsmtp.") or name == "SessionFactory"


@pytest.mark.parametrize("name", CLIENT_API)
def test_client_api(name: str) -> None:
    assert name in fastsmtp.__all__
    assert getattr(fastsmtp, name).__module__.startswith("fastsmtp.")


@pytest.mark.parametrize("name", TEXT_API)
def test_text_protocol_api(name: str) -> None:
    textproto = importlib.import_module("fastsmtp.textproto")
    assert name in textproto.__all__
    assert hasattr(textproto, name)


@pytest.mark.parametrize("owner", MEMBERS)
def test_members(owner: str) -> None:
    for name in MEMBERS[owner].split():
        assert hasattr(getattr(fastsmtp, owner), name), f"{owner}.{name}"


@pytest.mark.parametrize("name", MODULES)
def test_all_is_true(name: str) -> None:
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for exported in module.__all__:
        assert hasattr(module, exported), exported


def test_lazy_names() -> None:
    assert set(fastsmtp.__all__) <= set(dir(fastsmtp))
    for name in fastsmtp.__all__:
        assert getattr(fastsmtp, name) is not None
    with pytest.raises(AttributeError):
        fastsmtp.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", [each for each in MODULES if not each.rpartition(".")[2].startswith("_textproto")])
def test_public_things_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for exported in module.__all__:
        thing = getattr(module, exported)
        # The twins' texts stand once, in their contract, the .pyi.
        twin = getattr(thing, "__module__", "").startswith("fastsmtp._textproto")
        if not twin and (inspect.isclass(thing) or inspect.isfunction(thing)):
            assert thing.__doc__, exported
