"""Whom an operator trusts: networks, and "unix" for Unix sockets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import ConfigurationError, ServerOptions
from fastsmtp.networks import Networks

UNIX = ["", "/run/smtp.sock", b"\0abstract"]


@pytest.mark.parametrize(
    ("members", "inside", "outside"),
    [
        (False, [], [("127.0.0.1", 1), ("::1", 1, 0, 0), *UNIX]),
        ([], [], [("127.0.0.1", 1), ("::1", 1, 0, 0), *UNIX]),
        (True, [("127.0.0.1", 1), ("127.255.255.255", 1), ("::1", 1, 0, 0), *UNIX], [("128.0.0.1", 1), ("::2", 1, 0, 0)]),
        (["unix"], UNIX, [("127.0.0.1", 1), ("::1", 1, 0, 0)]),
        (["127.0.0.0/8", "::1"], [("127.0.0.1", 1), ("::1", 1, 0, 0)], UNIX),
        (["192.0.2.0/24"], [("192.0.2.0", 1), ("192.0.2.255", 1)], [("192.0.1.255", 1), ("192.0.3.0", 1)]),
        (["192.0.2.1"], [("192.0.2.1", 1)], [("192.0.2.0", 1), ("192.0.2.2", 1)]),
        (["2001:db8::/32"], [("2001:db8::1", 1, 0, 0), ("2001:DB8:F::", 1)], [("2001:db9::", 1, 0, 0), ("192.0.2.1", 1)]),
        (("192.0.2.1", "2001:db8::1", "unix"), [("192.0.2.1", 1), ("2001:db8::1", 1), ""], [("192.0.2.2", 1)]),
        # What a socket for both families says of an IPv4 client.
        (["192.0.2.0/24"], [("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:c000:201", 1)], [("::ffff:192.0.3.1", 1, 0, 0)]),
        # The zone of a link-local address.
        (["fe80::/10"], [("fe80::1%eth0", 1, 0, 2), ("fe80::1", 1, 0, 2)], [("fd00::1%eth0", 1, 0, 2)]),
        # Every network of one family has nobody of the other.
        (["0.0.0.0/0"], [("203.0.113.1", 1)], [("2001:db8::1", 1), *UNIX]),
        (["::/0"], [("2001:db8::1", 1)], [("203.0.113.1", 1), *UNIX]),
    ],
)  # fmt: skip
def test_who_belongs(members: Any, inside: list[object], outside: list[object]) -> None:
    networks = Networks(members)
    assert [each for each in inside if each not in networks] == []
    assert [each for each in outside if each in networks] == []
    assert bool(networks) is bool(inside)


@pytest.mark.parametrize("members", [True, ["unix"], ["0.0.0.0/0", "::/0", "unix"]])
@pytest.mark.parametrize("nobody", [None, ("", 0), ("unix", 0), ("localhost", 1), ("192.0.2.300", 1)])
def test_an_address_that_is_none_belongs_to_nobody(members: Any, nobody: object) -> None:
    """A socket whose peer is gone has no address; a proxy may not know its client's."""
    assert nobody not in Networks(members)


@pytest.mark.parametrize("option", ["allow_xforward", "allow_xclient", "proxy_from"])
@pytest.mark.parametrize(
    "members",
    ["127.0.0.1", "", ["localhost"], [""], ["192.0.2.1/24"], ["192.0.2.0/33"], ["127.0.0.1:25"], ["[::1]"], ["UNIX"]],
)
def test_what_is_no_network(option: str, members: Any) -> None:
    with pytest.raises(ConfigurationError):
        Networks(members)
    with pytest.raises(ConfigurationError):
        ServerOptions(**{option: members})


@given(st.ip_addresses(), st.integers(0, 128))
def test_each_address_is_in_its_networks(address: Any, prefix: int) -> None:
    networks = Networks([f"{address}/{address.max_prefixlen}"])
    mapped = getattr(address, "ipv4_mapped", None)  # the address of an IPv4 client, which only an IPv4 network has
    assert ((str(address), 25) in networks) is (mapped is None)
    every = Networks(["0.0.0.0/0", "::/0"])
    assert (str(address), prefix) in every
