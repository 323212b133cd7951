"""SASL mechanisms (RFC 4422), server and client side; nothing here knows SMTP, base64 lines or sockets.

`SERVERS` and `CLIENTS` have the classes by mechanism name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fastsmtp.sasl.identity import AnonymousClient, AnonymousServer, ExternalClient, ExternalServer
from fastsmtp.sasl.mechanism import (
    AnonymousCredentials,
    Challenge,
    ClientBase,
    ClientMechanism,
    CramMD5Credentials,
    Credentials,
    ExternalCredentials,
    Failure,
    Lookup,
    Outcome,
    PlainCredentials,
    SASLError,
    ScramCredentials,
    ServerBase,
    ServerMechanism,
    Success,
    TokenCredentials,
    Verify,
)
from fastsmtp.sasl.oauth import OAuthBearerClient, OAuthBearerServer, XOAuth2Client, XOAuth2Server
from fastsmtp.sasl.password import CramMD5Client, CramMD5Server, LoginClient, LoginServer, PlainClient, PlainServer
from fastsmtp.sasl.prep import saslprep
from fastsmtp.sasl.scram import (
    ScramClient,
    ScramPlusClient,
    ScramPlusServer,
    ScramServer,
    server_end_point,
)
from fastsmtp.sasl.secret import ScramSecret

__all__ = [
    "CLIENTS",
    "SERVERS",
    "AnonymousClient",
    "AnonymousCredentials",
    "AnonymousServer",
    "Challenge",
    "ClientBase",
    "ClientMechanism",
    "CramMD5Client",
    "CramMD5Credentials",
    "CramMD5Server",
    "Credentials",
    "ExternalClient",
    "ExternalCredentials",
    "ExternalServer",
    "Failure",
    "LoginClient",
    "LoginServer",
    "Lookup",
    "OAuthBearerClient",
    "OAuthBearerServer",
    "Outcome",
    "PlainClient",
    "PlainCredentials",
    "PlainServer",
    "SASLError",
    "ScramClient",
    "ScramCredentials",
    "ScramPlusClient",
    "ScramPlusServer",
    "ScramSecret",
    "ScramServer",
    "ServerBase",
    "ServerMechanism",
    "Success",
    "TokenCredentials",
    "Verify",
    "XOAuth2Client",
    "XOAuth2Server",
    "saslprep",
    "server_end_point",
]

SERVERS: Final[Mapping[str, type[ServerBase]]] = MappingProxyType(
    {
        mechanism.name: mechanism
        for mechanism in (
            PlainServer,
            LoginServer,
            CramMD5Server,
            XOAuth2Server,
            OAuthBearerServer,
            ExternalServer,
            AnonymousServer,
            ScramServer,
            ScramPlusServer,
        )
    }
)

CLIENTS: Final[Mapping[str, type[ClientBase]]] = MappingProxyType(
    {
        mechanism.name: mechanism
        for mechanism in (
            PlainClient,
            LoginClient,
            CramMD5Client,
            XOAuth2Client,
            OAuthBearerClient,
            ExternalClient,
            AnonymousClient,
            ScramClient,
            ScramPlusClient,
        )
    }
)
