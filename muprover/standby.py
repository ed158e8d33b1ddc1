"""A process that is ready to take the place of another one: all is loaded, nothing is begun.

The supervisor starts it with `VARIABLE` set, and tells it to go on by a line on its standard input.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "MUPROVER_STANDBY"
GO = b"go\n"


def is_standby() -> bool:
    return VARIABLE in os.environ


def await_turn() -> None:
    """Returns when this process is to take its place: at once, if it is no standby. Ends the
    process when there is nobody left who could tell it to."""
    if not is_standby():
        return
    if sys.stdin.buffer.readline() != GO:
        os._exit(0)  # it holds nothing that would have to be ended in order
    del os.environ[VARIABLE]
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
