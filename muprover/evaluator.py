"""The evaluator: measures the served agent, once, or each new version as long as it runs.

An evaluation is of one version: its searches name it, and if the server drops it meanwhile, the
evaluation begins anew with what is served then.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import grpc

from muprover.config import Config, SettingsError
from muprover.environment import Environments
from muprover.evaluation import Evaluation, EvaluationError, EvaluationResult
from muprover.evaluation.evaluate import MATCHES
from muprover.evaluation.players import VersionChangedError
from muprover.evaluation.report import Record, report, show, summary
from muprover.game import Game
from muprover.policy import Policy, PolicyOutput, SearchInputs
from muprover.services.client import ServiceError
from muprover.services.health import HealthPort
from muprover.services.server import start_metrics
from muprover.services.waiting import Stopped, persist, stop_on_signals

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # between two looks for a new version
ATTEMPT_SECONDS = 2.0


def run(
    game: Game,
    *,
    environment: str | None = None,
    network: str,
    watch: bool = False,
    as_json: bool = False,
    output: Path | None = None,
    metrics_port: int | None = None,
    metrics_host: str = "[::]",
    health_port: int | None = None,
    seed: int = 0,
    model_name: str = "muprover",
    search_signature: str = "search",
    matches: bool | None = None,
) -> int:
    """Evaluates the served agent and prints what it found; or, with `watch`, each new version,
    until SIGTERM or SIGINT.

    output: a file to which each evaluation adds a line of JSON. matches: whether it plays against
    others as well; by default it does once, but not in a watch, which only measures what the goal
    asks for.
    """
    stop = stop_on_signals()
    with ExitStack() as clients:
        start_metrics(metrics_port, metrics_host)
        health = None if health_port is None else HealthPort(health_port)
        if health:
            clients.callback(health.close)
        try:
            evaluation = Evaluation(game, seed, remote_environments(game, environment))
            measures = choose_measures(evaluation, watch, matches)
            agents = ServedAgents(network, model_name, game.config, search_signature)
            clients.callback(agents.close)
            evaluator = Evaluator(game, evaluation, measures, agents, stop, output)
            if health:
                health.set_serving(True)
            if watch:
                evaluator.watch()
            else:
                record = evaluator.evaluate_newest()
                print(
                    json.dumps(record.to_json(), ensure_ascii=False) if as_json else report(record)
                )
        except Stopped:
            log.info("told to stop")
        except (ServiceError, EvaluationError, SettingsError) as error:
            log.error("%s", error)
            return 1
    return 0


def choose_measures(
    evaluation: Evaluation, watch: bool, matches: bool | None = None
) -> tuple[str, ...]:
    if watch and not matches:
        return (evaluation.main_measure,)
    if matches is False:
        kept = [name for name in evaluation.measures if name not in MATCHES]
        return tuple(kept) or (evaluation.main_measure,)
    return evaluation.measures


def remote_environments(game: Game, address: str | None) -> Callable[[int], Environments] | None:
    """Games on the environment server; None where they are better played here: those of two
    players whose rules are at hand."""
    if address is None or (game.has_rules and game.config.game.num_players == 2):
        return None

    def connect(num_games: int) -> Environments:
        from muprover.services.environment import RemoteEnvironments

        return RemoteEnvironments(address, game.config, num_games)

    return connect


class Served(NamedTuple):
    """One version of an agent, ready to be asked."""

    version: int
    training_step: int
    policy: Policy


class Agents(Protocol):
    """Where versions of an agent come from."""

    def newest(self) -> Served:
        """The newest version; raises `ServiceError` as long as there is none."""


class ServedAgents:
    """The versions on a network server."""

    def __init__(
        self, address: str, model_name: str, config: Config, signature: str = "search"
    ) -> None:
        from muprover.services.network import RemoteNetwork, remote_search_policy

        self._network = RemoteNetwork(
            address, model_name, config, signature=signature, patience=ATTEMPT_SECONDS
        )
        self._is_checked = False
        self._searches_here = None
        if config.search.placement == "agent":
            self._searches_here = remote_search_policy(self._network, config)

    def newest(self) -> Served:
        if not self._is_checked:
            self._network.wait_until_ready()
            self._is_checked = True
        about = self._network.about()
        policy = self._searches_here or partial(self._network.policy, version=about.version)
        return Served(about.version, about.training_step, policy)

    def close(self) -> None:
        self._network.close()


class Evaluator:
    """Evaluates versions of an agent, one at a time, and remembers how often the goal was met."""

    def __init__(
        self,
        game: Game,
        evaluation: Evaluation,
        measures: Sequence[str],
        agents: Agents,
        stop: threading.Event,
        output: Path | None = None,
    ) -> None:
        self._goal = game.config.evaluation.goal
        self._share = game.config.evaluation.watch_share
        self._evaluation = evaluation
        self._measures = measures
        self._agents = agents
        self._stop = stop
        self._output = output
        self._in_a_row = 0

    def watch(self) -> None:
        """Evaluates the newest version whenever there is another, until told to stop.

        Takes no more than its share of the time, but does not pause once the goal is in sight.
        """
        version = None
        while not self._stop.is_set():
            pause = POLL_SECONDS
            if self._newest().version != version:
                started = time.monotonic()
                version = self.evaluate_newest().result.version
                if not self._in_a_row:
                    pause += (time.monotonic() - started) * (1 / self._share - 1)
            self._stop.wait(pause)

    def evaluate_newest(self) -> Record:
        """Evaluates the newest version there is, from beginning to end.

        Waits for one; begins anew if the version is dropped on the way, or the server is lost.
        """
        return persist(lambda: self._evaluate(self._newest()), self._stop)

    def _newest(self) -> Served:
        return persist(self._agents.newest, self._stop)

    def _evaluate(self, served: Served) -> Record:
        try:
            result = self._evaluation.run(self._until_stopped(served.policy), self._measures)
        except VersionChangedError as error:
            raise ServiceError(
                grpc.StatusCode.ABORTED, f"evaluation begins anew: {error}"
            ) from None
        record = self._record(served, result)
        show(record)
        log.info("%s", summary(record))
        if self._output:
            line = json.dumps(record.to_json(), ensure_ascii=False) + "\n"
            try:
                with open(self._output, "a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:
                log.error("%s lacks an evaluation: %s", self._output, error.strerror)
        return record

    def _record(self, served: Served, result: EvaluationResult) -> Record:
        if self._goal:
            met = self._goal.is_met(result.metrics[self._goal.metric])
            self._in_a_row = self._in_a_row + 1 if met else 0
        return Record(
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            training_step=served.training_step,
            goal=self._goal,
            in_a_row=self._in_a_row,
            result=result,
        )

    def _until_stopped(self, policy: Policy) -> Policy:
        """`policy`, but told to stop it raises `Stopped` instead of being asked once more."""

        def asked(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
            if self._stop.is_set():
                raise Stopped
            return policy(inputs, details)

        return asked
