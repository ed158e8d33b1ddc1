"""The yardstick: plain Monte-Carlo tree search (UCT) with the true rules and random rollouts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from muprover.environment import Environment
from muprover.evaluation.players import View

EXPLORATION = 1.4  # of results between −1 and 1


class MCTSPlayer:
    """Searches each position anew with `num_simulations`, and takes the most visited move."""

    def __init__(self, num_simulations: int, rng: np.random.Generator, max_moves: int) -> None:
        """`max_moves`: a rollout that is longer is broken off."""
        self.name = f"MCTS with {num_simulations} simulations"
        self._num_simulations = num_simulations
        self._max_moves = max_moves
        self._lots = _lots(rng)
        self._actions: dict[bytes, list[int]] = {}  # legal ones by mask: making lists takes time

    def choose(self, view: View) -> NDArray[np.int32]:
        rows = zip(view.positions(), view.legal_actions, view.to_play.tolist(), strict=True)
        return np.array(
            [self._search(_Node(game, self._legal(mask), mover)) for game, mask, mover in rows],
            np.int32,
        )

    def _search(self, root: _Node) -> int:
        for _ in range(self._num_simulations):
            self._simulate(root)
        return max(root.children, key=lambda child: child.visits).action

    def _simulate(self, root: _Node) -> None:
        """Walks down to a new node, plays on from there at random, and notes the result."""
        node, path = root, [root]
        while not node.untried and node.children:
            node = node.most_promising()
            path.append(node)
        if node.untried:
            node = self._expand(node)
            path.append(node)
        result = self._rollout(node) if node.untried else 0.0
        for node in reversed(path):  # `result` is for the player to move at the node
            result = node.reward + node.sign * result  # and now for who moved there
            node.visits += 1
            node.total += result

    def _expand(self, node: _Node) -> _Node:
        """A new child, for any of the moves not tried yet in `node`."""
        untried = node.untried
        index = int(next(self._lots) * len(untried))
        untried[index], untried[-1] = untried[-1], untried[index]
        action = untried.pop()
        game = node.game.copy()
        step = game.step(action)
        over = step.terminated or step.truncated
        child = _Node(game, [] if over else self._legal(step.legal_actions), step.to_play)
        child.action = action
        child.reward = float(step.reward)
        child.sign = 1 if child.to_play == node.to_play else -1
        node.children.append(child)
        return child

    def _rollout(self, node: _Node) -> float:
        """What the player to move at `node`, where no move was tried yet, gets from there on if
        all moves are random."""
        game, lots, known = node.game.copy(), self._lots, self._actions
        legal, mover, result = node.untried, node.to_play, 0.0
        for _ in range(self._max_moves):
            step = game.step(legal[int(next(lots) * len(legal))])
            if step.reward:
                result += step.reward if mover == node.to_play else -step.reward
            if step.terminated or step.truncated:
                break
            mover = step.to_play
            legal = known.get(step.legal_actions.tobytes()) or self._legal(step.legal_actions)
        return float(result)

    def _legal(self, mask: NDArray[np.bool_]) -> list[int]:
        actions = np.flatnonzero(mask).tolist()
        self._actions[mask.tobytes()] = actions
        return list(actions)  # nodes change theirs


class _Node:
    """A position, and the results seen through it, summed for the player who moved there."""

    __slots__ = (
        "action", "children", "game", "reward", "sign", "to_play", "total", "untried", "visits",
    )  # fmt: skip

    def __init__(self, game: Environment, untried: list[int], to_play: int) -> None:
        self.game = game
        self.untried = untried
        self.to_play = to_play
        self.action = -1  # that led here,
        self.reward = 0.0  # what its player got for it,
        self.sign = 1  # and whether it is the same player who moves next
        self.children: list[_Node] = []
        self.visits = 0
        self.total = 0.0

    def most_promising(self) -> _Node:
        """The child with the highest upper confidence bound."""
        width = EXPLORATION * math.sqrt(math.log(self.visits))
        return max(
            self.children,
            key=lambda child: child.total / child.visits + width / math.sqrt(child.visits),
        )


def _lots(rng: np.random.Generator) -> Iterator[float]:
    """Numbers from [0, 1), drawn many at a time, which is faster than one by one."""
    while True:
        yield from rng.random(4096).tolist()
