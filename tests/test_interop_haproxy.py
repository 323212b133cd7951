"""HAProxy in front: PROXY v1 and v2, TLS that ends there, health checks; on asyncio's loop and on uvloop."""

from __future__ import annotations

import pathlib
import smtplib
import socket
import ssl
from typing import Any

import pytest

from fastsmtp.protocol.proxy import TLV_AUTHORITY, TLV_CRC32C, TLV_UNIQUE_ID, ProxyHeader

from .inprocess import Arrived, InProcess, LoopFactory
from .interop.haproxy import HAProxy, haproxy
from .interop.tools import BOTH_LOOPS, HARD, Certificates

pytestmark = [pytest.mark.interop, BOTH_LOOPS]


def send(through: HAProxy, *, starttls: ssl.SSLContext | None = None) -> tuple[str, int]:
    """Send a message through the proxy; our own address, which the server is to know."""
    with smtplib.SMTP("127.0.0.1", through.port, "client.example", timeout=60) as client:
        address = own_address(client)
        if starttls is not None:
            client.starttls(context=starttls)
        client.sendmail("a@b.example", ["c@d.example"], HARD, ["BODY=8BITMIME"])
    return address


def own_address(client: smtplib.SMTP) -> tuple[str, int]:
    assert client.sock is not None
    address: tuple[str, int] = client.sock.getsockname()
    return address


def proxied(arrived: Arrived) -> ProxyHeader:
    assert arrived.state.proxy is not None
    return arrived.state.proxy


@pytest.mark.parametrize(("how", "version"), [("send-proxy", 1), ("send-proxy-v2", 2)])
def test_addresses(loop: LoopFactory, how: str, version: int, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    with InProcess(loop, proxy_from=True, tls=pems.tls()) as server:
        with haproxy(tmp_path, server.place, server=how) as through:
            ours = send(through)
            secured = send(through, starttls=ssl.create_default_context(cafile=str(pems.ca)))
        first, second = server.wait(2)
    assert first.state.remote_addr == ours and second.state.remote_addr == secured
    for each in (first, second):
        assert each.text == HARD and each.helo == "client.example"
        assert each.state.local_addr == ("127.0.0.1", through.port)
        assert (proxied(each).version, proxied(each).command, proxied(each).family) == (version, "PROXY", "TCP4")
    assert first.tls is None and second.tls == "TLSv1.3"


def test_everything_that_it_can_tell(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    """TLS ends at HAProxy; the client's certificate, the name asked for, a name for the connection and a checksum come on."""
    pems = Certificates.make(tmp_path)
    context = ssl.create_default_context(cafile=str(pems.ca))
    context.load_cert_chain(pems.client)
    options = "proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id"
    with InProcess(loop, proxy_from=["127.0.0.1"]) as server:
        with haproxy(
            tmp_path,
            server.place,
            bind=f"ssl crt {pems.server} ca-file {pems.ca} verify optional",
            frontend="unique-id-format %{+X}o-%ci-%cp",
            server=f"send-proxy-v2 {options}",
        ) as through:
            ours = over_tls(through, context)
            over_tls(through, ssl.create_default_context(cafile=str(pems.ca)))
        first, second = server.wait(2)
    assert first.state.remote_addr == ours and first.text == second.text == HARD
    header = proxied(first)
    assert header.tls is not None and header.tls.used and header.tls.verified
    assert header.tls.version == "TLSv1.3" and header.tls.common_name == "relay.example"
    assert header.tls.cipher is not None and header.tls.cipher.startswith("TLS_")
    assert header.tlv(TLV_AUTHORITY) == b"mx.example"
    assert header.tlv(TLV_UNIQUE_ID) and header.tlv(TLV_CRC32C)
    other = proxied(second)
    assert other.tls is not None and other.tls.used and not other.tls.verified and other.tls.common_name is None
    assert other.tlv(TLV_UNIQUE_ID) != header.tlv(TLV_UNIQUE_ID)
    assert first.tls is None  # the connection from HAProxy has none


def over_tls(through: HAProxy, context: ssl.SSLContext) -> tuple[str, int]:
    with OverTLS("mx.example", through.port, context) as client:
        address = own_address(client)
        client.sendmail("a@b.example", ["c@d.example"], HARD, ["BODY=8BITMIME"])
    return address


class OverTLS(smtplib.SMTP_SSL):
    """A client that asks for a server by name, and finds it on loopback."""

    def __init__(self, name: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(name, port, "client.example", timeout=60, context=context)

    def _get_socket(self, host: str, port: int, timeout: Any) -> socket.socket:
        return self.context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout), server_hostname=host)


def test_proxy_before_implicit_tls(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    """HAProxy passes TLS on unread; its header comes before the handshake."""
    pems = Certificates.make(tmp_path)
    context = ssl.create_default_context(cafile=str(pems.ca))
    context.load_cert_chain(pems.client)
    with InProcess(loop, proxy_from=True, tls=pems.tls(), implicit_tls=True) as server:
        with haproxy(tmp_path, server.place) as through:
            ours = over_tls(through, context)
        arrived = server.only()
    assert arrived.state.remote_addr == ours and arrived.text == HARD
    assert arrived.tls == "TLSv1.3" and arrived.common_name == "relay.example"


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2"])
def test_health_checks(loop: LoopFactory, how: str, tmp_path: pathlib.Path) -> None:
    """They come with a header of their own, LOCAL in version 2."""
    with InProcess(loop, proxy_from=True) as server:
        with haproxy(
            tmp_path,
            server.place,
            backend="option smtpchk EHLO check.example",
            server=f"{how} check-send-proxy check inter 1s fastinter 1s",
        ) as through:
            line = through.checked()
            assert (line["status"], line["check_status"].lstrip("* ")) == ("UP", "L7OK")
            ours = send(through)
        arrived = server.only()
    assert arrived.state.remote_addr == ours
    assert "EHLO check.example" in server.said()


def test_a_proxy_that_is_not_trusted(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    """Its header is no SMTP, and what it says is not believed."""
    with InProcess(loop, proxy_from=["192.0.2.0/24"]) as server:
        with haproxy(tmp_path, server.place) as through:
            with pytest.raises(smtplib.SMTPException):
                send(through)
        assert not server.inbox.taken()
