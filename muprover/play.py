"""A person against the agent in the terminal, with the search's view of things on request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal

import numpy as np

from muprover.config import SettingsError
from muprover.evaluation.players import as_evaluated, evaluation_inputs
from muprover.evaluation.positions import Position
from muprover.game import Game
from muprover.policy import Policy, PolicyOutput
from muprover.services.client import ServiceError

Seat = Literal["first", "second", "both", "watch"]

HELP = """\
A move is what the list of moves calls it. Besides there are:
  hint   what the search thinks of the position (also: ?)
  go     let the agent make this move
  undo   take back your last move, and what followed
  new    begin a new game
  help   this
  quit   leave (also: Ctrl-D)"""


def run(
    game: Game,
    *,
    network: str | None = None,
    load: Callable[[], Policy] | None = None,
    seat: Seat = "first",
    num_simulations: int | None = None,
    model_name: str = "muprover",
    seed: int | None = None,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> int:
    """Plays in the terminal until the person leaves; answers an exit status.

    The agent is the one on the server `network`, or the one that `load` loads. seat: that the
    person takes; `both`: and the agent none; `watch`: neither.
    """
    with ExitStack() as clients:
        try:
            policy = load() if load else _remote_policy(game, network, model_name, clients)
            policy = as_evaluated(policy, game.config)
            simulations = _checked_simulations(game, num_simulations)
            Session(game, policy, seat, simulations, np.random.default_rng(seed), read, write).run()
        except (EOFError, KeyboardInterrupt):
            write("")
        except (ServiceError, SettingsError) as error:
            write(f"error: {error}")
            return 1
    return 0


def _remote_policy(game: Game, address: str | None, model_name: str, clients: ExitStack) -> Policy:
    from muprover.services.network import RemoteNetwork, remote_search_policy

    if address is None:
        raise SettingsError("whom to play? give --network HOST:PORT, or --run FOLDER")
    network = RemoteNetwork(address, model_name, game.config, patience=10.0)
    clients.callback(network.close)
    network.wait_until_ready()
    if game.config.search.placement == "agent":
        return remote_search_policy(network, game.config)
    return network.policy


def _checked_simulations(game: Game, given: int | None) -> int:
    most = game.config.search.max_num_simulations
    if given is not None and not 1 <= given <= most:
        raise SettingsError(
            f"--num-simulations {given}: must be from 1 to {most}, search.max_num_simulations"
        )
    return given or game.config.evaluation_simulations


class Leave(Exception):
    """The person has had enough."""


class Session:
    """Games one after the other, and the commands that the person gives in them."""

    def __init__(
        self,
        game: Game,
        policy: Policy,
        seat: Seat,
        num_simulations: int,
        rng: np.random.Generator,
        read: Callable[[str], str] = input,
        write: Callable[[str], None] = print,
    ) -> None:
        if game.config.game.num_players == 1 and seat in ("second", "both"):
            raise SettingsError(
                f"{game.name} has one player: take the first seat to play, or watch"
            )
        self._game = game
        self._policy = policy
        self._seats: set[int] = {"first": {0}, "second": {1}, "both": {0, 1}, "watch": set()}[seat]
        self._num_simulations = num_simulations
        self._rng = rng
        self._read = read
        self._write = write
        self._past: list[Position] = []  # of this game, before the present one
        self._returns = [0.0]  # of player 0, in these positions and the present one
        self._commands: dict[str, Callable[[], None]] = {
            "": self._next,
            "hint": self._hint,
            "?": self._hint,
            "go": self._play_agents_move,
            "undo": self._undo,
            "new": self._new,
            "help": lambda: self._write(HELP),
            "quit": self._quit,
        }
        self._position = Position.start(game, self._seed())

    def run(self) -> None:
        """Plays until the person leaves; raises what `read` raises at the end of its input."""
        self._write(HELP)
        self._show()
        try:
            while True:
                if self._is_agents_turn and self._seats:
                    self._play_agents_move()
                else:
                    self._obey(self._read(self._prompt()).strip().lower())
        except Leave:
            return

    @property
    def _is_agents_turn(self) -> bool:
        return not self._position.is_over and int(self._position.step.to_play) not in self._seats

    def _prompt(self) -> str:
        if self._position.is_over:
            return "new, undo or quit> "
        if not self._seats:
            return "Enter for the next move> "
        return f"your move ({' '.join(self._names())})> "

    def _names(self) -> dict[str, int]:
        """The legal moves, by what a person calls them."""
        name = self._position.environment.action_name
        return {name(action): action for action in self._position.legal}

    def _obey(self, text: str) -> None:
        moves = {name.lower(): action for name, action in self._names().items()}
        if text in moves and self._seats:
            self._move(moves[text])
        elif text in self._commands:
            self._commands[text]()
        else:
            known = "help" if self._position.is_over else f"{', '.join(self._names())}; or help"
            self._write(f"'{text}' is no move here. There are: {known}.")

    def _move(self, action: int) -> None:
        before = self._position
        after = before.after(action)
        reward = float(after.step.reward)
        self._past.append(before)
        self._returns.append(self._returns[-1] + (-reward if before.step.to_play else reward))
        self._position = after
        self._show()

    def _show(self) -> None:
        picture = self._position.environment.render()
        self._write("\n" + (picture or np.array2string(self._position.observation, precision=3)))
        if self._position.is_over:
            self._write(self._outcome())

    def _outcome(self) -> str:
        score = self._returns[-1]
        if self._game.config.game.num_players == 1:
            return f"The game is over after {len(self._past)} moves; return {score:g}."
        if not score:
            return "A draw."
        winner = 0 if score > 0 else 1
        if len(self._seats) != 1:
            return f"The {('first', 'second')[winner]} player wins."
        return "You win." if winner in self._seats else "The agent wins."

    def _search(self) -> PolicyOutput:
        position = self._position
        legal_actions = position.step.legal_actions[None]
        inputs = evaluation_inputs(position.observation[None], legal_actions, self._num_simulations)
        return self._policy(inputs, details=True)

    def _next(self) -> None:
        if self._seats:
            self._write("Name a move, or help.")
        else:
            self._play_agents_move()

    def _play_agents_move(self) -> None:
        if self._position.is_over:
            self._write("The game is over: new, undo or quit.")
            return
        output = self._search()
        action = int(output.action[0])
        name = self._position.environment.action_name(action)
        self._write(f"\nagent: {name}   (it expects {output.value[0]:+.2f} for itself)")
        self._move(action)

    def _hint(self) -> None:
        if self._position.is_over:
            self._write("The game is over.")
        else:
            self._write(describe(self._search(), self._position))

    def _undo(self) -> None:
        """Goes back to where the person moved last; watching, one move."""
        if not any(self._may_stop_at(position) for position in self._past):
            self._write("There is no move of yours to take back.")
            return
        while self._past:
            self._position = self._past.pop()
            self._returns.pop()
            if self._may_stop_at(self._position):
                break
        self._show()

    def _may_stop_at(self, position: Position) -> bool:
        return not self._seats or int(position.step.to_play) in self._seats

    def _new(self) -> None:
        self._past, self._returns = [], [0.0]
        self._position = Position.start(self._game, self._seed())
        self._show()

    def _seed(self) -> int:
        return int(self._rng.integers(2**31))

    def _quit(self) -> None:
        raise Leave


def describe(output: PolicyOutput, position: Position) -> str:
    """The search's view of `position`: a row for each move, the best first, and the line it
    expects. Values are for the player to move."""
    details = (output.visit_counts, output.q_values, output.prior)
    visits, values, prior = (np.asarray(detail)[0] for detail in details)
    name = position.environment.action_name
    best = int(output.action[0])
    order = sorted(position.legal, key=lambda a: (a != best, -visits[a], -prior[a]))
    width = max(4, *(len(name(action)) for action in order))
    rows = [f"{'move':>{width}}  visits   value  prior  policy"]
    for action in order:
        value = f"{values[action]:+.3f}" if visits[action] else "-"
        rows.append(
            f"{name(action):>{width}}  {visits[action]:6d}  {value:>6}  "
            f"{prior[action]:5.1%}  {output.action_weights[0, action]:6.1%}"
        )
    rows.append(
        f"value {output.value[0]:+.3f}; expects {' '.join(_expected_line(output, position))}"
    )
    return "\n".join(rows)


def _expected_line(output: PolicyOutput, position: Position) -> list[str]:
    """The names of the moves that the search expects, as far as the rules allow them."""
    names: list[str] = []
    line = [] if output.principal_variation is None else output.principal_variation[0].tolist()
    for action in line:
        if action not in position.legal:  # past the line's end, or only the model would allow it
            break
        names.append(position.environment.action_name(action))
        position = position.after(action)
    return names
