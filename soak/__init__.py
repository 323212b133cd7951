"""The soak: honest and hostile clients against the real server, for as long as one likes; `python -m soak --help`."""

from __future__ import annotations

__all__: list[str] = []
