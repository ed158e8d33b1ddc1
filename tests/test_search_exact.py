"""The readable search against brute force: what it says a move is worth, and which it takes."""

from __future__ import annotations

import numpy as np
import pytest
from table_network import ALL, GUMBEL, PUCT, TableNetwork, make_inputs
from tictactoe_positions import move, outcomes, perfect, solve, tic_tac_toe

from muprover.config import SearchConfig
from muprover.policy import PolicyOutput
from muprover.search import make_policy

# --- tic-tac-toe, with perfect values -------------------------------------------------------------


@ALL
@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("xx.oo....", 2),  # x wins
        ("xx.oo...x", 5),  # o wins, rather than block
        ("xx..o....", 2),  # o blocks
        ("oo.x..x.x", 2),  # o wins at 2 (7 would only block)
        ("o...o.xx.", 8),  # x wins
        ("x...x.o..", 8),  # o blocks
    ],
)
def test_a_win_is_seen_and_a_loss_is_blocked_by_both_seats(
    config: SearchConfig, text: str, best: int
):
    network = TableNetwork(move, perfect)
    legal = [[mark == "." for mark in text]]
    out = make_policy(network, config, -1.0)(make_inputs([tic_tac_toe(text)], legal, 60))
    assert out.action[0] == best
    if outcomes(tic_tac_toe(text))[best] == 1:
        assert out.q_values[0, best] == 1 == out.q_values[0].max()
    assert out.visit_counts[0][~np.array(legal[0])].sum() == 0
    assert solve(tic_tac_toe(text)) == outcomes(tic_tac_toe(text))[best]


# --- random trees: node n of a tree is followed by 2n and 2n + 1, the root is 1 -------------------

TREES, ROOM = 8, 2**40  # position = tree · ROOM + node
DRAWN = np.random.RandomState(0).uniform(-1, 1, (2, 4099))


def reward(position: int) -> float:
    """Of the move that leads there."""
    return float(DRAWN[0, position % 4099])


def guess(position: int) -> float:
    return float(DRAWN[1, position % 4099])


def child(position: int, action: int) -> int:
    tree, node = divmod(position, ROOM)
    return tree * ROOM + 2 * node + action


def search_trees(
    network: TableNetwork, config: SearchConfig, discount: float, simulations: int
) -> PolicyOutput:
    roots = [tree * ROOM + 1 for tree in range(TREES)]
    inputs = make_inputs(roots, np.ones((TREES, 2)), simulations)
    return make_policy(network, config, discount)(inputs)


@ALL
@pytest.mark.parametrize("discount", [-1.0, -0.8, 0.9])
def test_a_value_is_the_mean_of_the_returns_of_all_paths_tried(
    config: SearchConfig, discount: float
):
    """Trees without an end; returns are summed forwards, each from the root."""
    network = TableNetwork(
        lambda p, action: (child(p, action), reward(child(p, action))), lambda p: (guess(p), [0, 0])
    )
    out = search_trees(network, config, discount, 60)

    for tree in range(TREES):
        returns: tuple[list[float], list[float]] = ([], [])
        for parent, action in network.asked[tree::TREES]:  # one leaf in each simulation
            leaf = child(parent, action)
            node = leaf % ROOM
            depth = node.bit_length() - 1
            path = [tree * ROOM + (node >> (depth - i)) for i in range(1, depth + 1)]
            rewards = [discount**i * reward(position) for i, position in enumerate(path)]
            returns[path[0] % 2].append(sum(rewards) + discount**depth * guess(leaf))
        assert out.visit_counts[tree].tolist() == [len(returns[0]), len(returns[1])]
        np.testing.assert_allclose(out.q_values[tree], [np.mean(r) for r in returns], atol=2e-5)
        everything = [guess(tree * ROOM + 1), *returns[0], *returns[1]]
        assert out.value[tree] == pytest.approx(np.mean(everything), abs=2e-5)


@ALL
def test_relabelled_actions_get_relabelled_answers(config: SearchConfig):
    """Action a of one game is action `label[a]` of the other; some are not legal at the root."""
    rng = np.random.RandomState(5)
    label = np.array([3, 0, 4, 1, 2])
    values, logits = rng.uniform(-1, 1, 500), rng.randn(500, 5)

    def follow(position: int, action: int) -> tuple[int, float]:
        return (position * 5 + action + 1) % 500, float(values[(position + action) % 500])

    plain = TableNetwork(follow, lambda p: (values[p], logits[p].tolist()))
    unlabel = label.argsort()
    relabelled = TableNetwork(
        lambda p, a: follow(p, int(unlabel[a])), lambda p: (values[p], logits[p][unlabel].tolist())
    )
    legal = rng.rand(20, 5) < 0.6
    legal[:, 1] |= ~legal.any(-1)
    roots = rng.randint(0, 500, 20)
    one = make_policy(plain, config, -0.97)(make_inputs(roots, legal, 40))
    other = make_policy(relabelled, config, -0.97)(make_inputs(roots, legal[:, unlabel], 40))
    np.testing.assert_array_equal(other.visit_counts[:, label], one.visit_counts)
    np.testing.assert_array_equal(other.action, label[one.action])
    np.testing.assert_allclose(other.q_values[:, label], one.q_values, atol=1e-5)
    np.testing.assert_allclose(other.value, one.value, atol=1e-5)


@ALL
@pytest.mark.parametrize("discount", [-1.0, 0.9])
def test_the_search_converges_to_exhaustive_search(config: SearchConfig, discount: float):
    """Three moves deep, and nothing after that. What is left of the error is what was tried on the
    way: PUCT tries worse moves about √S times of S, Gumbel a few times only."""

    def rules(position: int, action: int) -> tuple[int, float]:
        there = child(position, action)
        return there, reward(there) if there % ROOM < 16 else 0.0

    def exact(position: int) -> list[float]:
        """What each move is worth."""
        if position % ROOM >= 8:
            return [0.0, 0.0]
        followed = [rules(position, action) for action in (0, 1)]
        return [reward + discount * max(exact(there)) for there, reward in followed]

    network = TableNetwork(rules, lambda position: (max(exact(position)), [0.0, 0.0]))
    truth = np.array([exact(tree * ROOM + 1) for tree in range(TREES)])
    rows, error = np.arange(TREES), {}
    for simulations in (100, 900):
        out = search_trees(network, config, discount, simulations)
        taken = truth[rows, out.action]
        error[simulations] = np.abs(out.q_values[rows, out.action] - taken)
    assert error[900].mean() < error[100].mean() * (0.2 if config is GUMBEL else 0.45)
    assert error[900].max() < (0.01 if config is GUMBEL else 0.12)
    clear = np.abs(truth[:, 0] - truth[:, 1]) > 2 * error[900].max()
    assert clear.sum() >= TREES / 2
    assert (out.action == truth.argmax(1))[clear].all()


def test_values_change_sides_at_every_move_on_the_way_up():
    """One action only: a path with the rewards 1, 2, 4 and the leaf's value 8, discount −½."""
    network = TableNetwork(
        lambda depth, _: (depth + 1, [1.0, 2.0, 4.0][depth]),
        lambda depth: ([0.0, 0.0, 0.0, 8.0][depth], [0.0]),
    )
    out = make_policy(network, PUCT, -0.5)(make_inputs([0], [[True]], 3))
    first, second, third = 1 + 0, 1 - 0.5 * 2, 1 - 0.5 * (2 - 0.5 * (4 - 0.5 * 8))
    assert out.value[0] == pytest.approx((0 + first + second + third) / 4)
