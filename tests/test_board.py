"""The figures of several workers: what is added up, what goes with a worker, what stays."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastsmtp._board import Board, Display, Figure, Kind
from fastsmtp.counters import Counters

FIGURES = (Figure("delivered"), Figure("queued", Kind.STORED), Figure("oldest", Kind.SINCE))


def test_figures_of_workers() -> None:
    board = Board(2, FIGURES)
    assert board.total() == dict.fromkeys(board.total(), 0)
    first, more = Counters(connections=3, messages=5), SimpleNamespace(delivered=4, queued=1, oldest=200)
    board.pen(0, first, more)()
    board.pen(1, Counters(connections=1, messages=2), SimpleNamespace(delivered=1, queued=2, oldest=100))()
    total = board.total()
    assert (total["connections"], total["messages"], total["delivered"]) == (4, 7, 5)
    assert (total["queued"], total["oldest"]) == (3, 100)

    board.gone(0)  # its connections with it, but not what is stored
    total = board.total()
    assert (total["connections"], total["messages"], total["queued"], total["oldest"]) == (1, 7, 3, 100)

    pen = board.pen(0, Counters(connections=1, messages=1), SimpleNamespace(delivered=1, queued=5, oldest=0))
    pen()
    pen()
    total = board.total()
    assert (total["connections"], total["messages"], total["delivered"]) == (2, 8, 6)
    assert (total["queued"], total["oldest"]) == (7, 100)


def test_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(1)
    display = Display(board)
    board.pen(0, Counters(messages=2, recipients=3, octets=40, connections_total=1))()
    display.tick()  # no terminal: nothing
    display.summary()
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(
        "fastsmtp: 2 messages for 3 recipients, 40 octets, 1 connections, 0 refused, 0 errors in "
    )
