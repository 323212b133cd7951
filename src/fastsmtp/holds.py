"""Why a connection leaves its input alone: reasons, kept in one number that is looked at after each event."""

from __future__ import annotations

from typing import Final

__all__ = [
    "AT_THE_GATE",
    "ENDING",
    "HOOK_RUNS",
    "NOT_GREETED",
    "OTHERS_TURN",
    "PEER_IS_DEAF",
    "PUNISHED",
    "SESSION_FULL",
    "SHAKING_HANDS",
]

HOOK_RUNS: Final = 1  # the next command waits for a hook
PEER_IS_DEAF: Final = 2  # the peer does not read its replies
OTHERS_TURN: Final = 4  # other connections get their turn first
ENDING: Final = 8  # the last word is said, or the connection is lost
SESSION_FULL: Final = 16  # the session has not read enough of its message
AT_THE_GATE: Final = 32  # the PROXY header has not come
NOT_GREETED: Final = 64  # the greeting waits on purpose
PUNISHED: Final = 128  # the answers to refused commands do
SHAKING_HANDS: Final = 256  # the loop has the transport, for TLS
