"""What `environment_check` asks with and reads answers by: `Probe`, `read_answer`, `faults`.

Unlike `RemoteEnvironments`, it can also send what is not allowed, and says in words what is wrong.
Letters: n rows of a request, A actions.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import grpc
import numpy as np

from muprover.config import GameConfig
from muprover.environment import TimeStep
from muprover.services.environment import answer_tensors
from muprover.services.play_stream import AnswerTimeout, PlayStream
from muprover.tensors import TensorError, from_tensor
from muprover.v1.environment_pb2 import Moves, PlayRequest, PlayResponse, Resets
from muprover.v1.environment_pb2_grpc import EnvironmentServiceStub


class Fault(NamedTuple):
    """Why an answer is not as it must be."""

    rule: str
    came: str
    wanted: str


class EndedError(Exception):
    """The server ended a call instead of answering."""

    def __init__(self, code: grpc.StatusCode, details: str = "") -> None:
        self.code = code
        self.details = details
        super().__init__(f"the call's end with {code.name}" + (f" ({details})" if details else ""))

    @classmethod
    def of(cls, error: grpc.RpcError) -> EndedError:
        return cls(error.code(), error.details() or "")


class Probe:
    """One call of `Play`; `sent` says in words what was asked last."""

    def __init__(self, stub: EnvironmentServiceStub, timeout: float) -> None:
        """`timeout`: seconds for each answer."""
        self._stream = PlayStream(stub, timeout)
        self._timeout = timeout
        self.sent = "nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def reset(self, rows: list[int], seeds: list[int]) -> PlayResponse:
        request = PlayRequest(rows=rows, resets=Resets(seeds=seeds))
        return self.ask(request, f"a reset of rows {rows} with seeds {seeds}")

    def move(
        self, rows: list[int], actions: list[int], next_seeds: Sequence[int] = ()
    ) -> PlayResponse:
        request = PlayRequest(rows=rows, moves=Moves(actions=actions, next_seeds=next_seeds))
        then = f" with next_seeds {next_seeds}" if next_seeds else ""
        return self.ask(request, f"actions {actions} in rows {rows}{then}")

    def ask(self, request: PlayRequest, sent: str) -> PlayResponse:
        """The next answer; raises `EndedError`."""
        self.sent = sent
        self._stream.send(request)
        return self._next()

    def count_rest(self) -> int:
        """How many answers come that nobody asked for; ends the call."""
        self._stream.finish()
        count = 0
        impatience = threading.Timer(self._timeout, self._stream.close)
        impatience.start()
        try:
            while count < 100:
                self._next()
                count += 1
        except EndedError as end:
            if end.code != grpc.StatusCode.OK:
                raise
        finally:
            impatience.cancel()
        return count

    def _next(self) -> PlayResponse:
        try:
            answer = self._stream.receive()
        except AnswerTimeout as error:
            raise EndedError(grpc.StatusCode.DEADLINE_EXCEEDED, str(error)) from None
        except grpc.RpcError as error:
            raise EndedError.of(error) from None
        if answer is None:
            raise EndedError(grpc.StatusCode.OK)
        return answer


def read_answer(
    answer: PlayResponse, n: int, game: GameConfig
) -> tuple[TimeStep | None, list[Fault]]:
    """The `[n, …]` time steps of an answer about n rows, or what is wrong with its tensors."""
    tensors, found = {}, []
    for name, (dtype, shape) in answer_tensors(n, game).items():
        try:
            tensors[name] = from_tensor(getattr(answer, name), name, dtype, shape)
        except TensorError as error:
            found.append(Fault(name, str(error), f"{dtype} of shape {list(shape)}"))
    return (None, found) if found else (TimeStep(**tensors), [])


def faults(step: TimeStep, before: TimeStep | None, game: GameConfig) -> Iterator[Fault]:
    """What is wrong with the `[1, …]` time step of a game; `before` is None after a reset."""
    over, to_play = is_over(step), int(step.to_play[0])
    if not np.isfinite(step.observation).all():
        yield Fault("observation", "an observation that is not finite", "finite numbers")
    if not math.isfinite(step.reward[0]):
        yield Fault("reward", f"reward {step.reward[0]}", "a finite one")
    elif before is None and step.reward[0] != 0:
        yield Fault("reward", f"reward {step.reward[0]:g} after a reset", "0: nobody has moved")
    if not 0 <= to_play < game.num_players:
        yield Fault("to_play", f"to_play {to_play}", f"one of {list(range(game.num_players))}")
    elif before is not None and to_play != (int(before.to_play[0]) + 1) % game.num_players:
        yield Fault("to_play", f"to_play {to_play} twice in a row", "two players to take turns")
    if before is None and over:
        yield Fault("ending", "a game that is over when it begins", "a move to make after a reset")
    if step.terminated[0] and step.truncated[0]:
        yield Fault("ending", "terminated together with truncated", "one of them at most")
    if not over and not step.legal_actions.any():
        yield Fault("legal_actions", "a game that goes on with no legal action", "at least one")
    if over and step.legal_actions.any():
        yield Fault(
            "legal_actions",
            f"legal actions {np.flatnonzero(step.legal_actions).tolist()} in a game that is over",
            "none: all false",
        )


def is_over(step: TimeStep) -> bool:
    """Of a `[1, …]` time step."""
    return bool(step.terminated[0] or step.truncated[0])


def difference(one: TimeStep, other: TimeStep) -> str:
    """The first field in which two time steps are not exactly equal, or nothing."""
    for name in TimeStep._fields:
        if not np.array_equal(getattr(one, name), getattr(other, name)):
            return name
    return ""
