"""MuZero's tree search on numpy: the readable form of what `model/search.py` compiles.

B searches run in lock step, so each simulation asks the network once, for all of them. A search
is three verbs, repeated: `simulate` walks down the tree to an action never tried, `expand` asks
the network what follows from it and adds the node, `backward` carries the value up the path. The
two policies beside each other differ in how they choose actions, at the root and below.

What holds throughout: a value is for the player to move, a reward for the player who moved, and
the signed `discount` (negative in two-player games) makes one of the other, so
`Q = reward + discount · value of the child`. Legality is known at the root only. Each row depends
on its own inputs alone, down to its random numbers.

Letters: B games, A actions, S simulations, N = S + 1 nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muprover.config import SearchConfig
from muprover.policy import Network, NetworkOutput, Policy, PolicyOutput, SearchInputs
from muprover.search_random import ACTION, ROOT_NOISE, dirichlet, gumbel

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

ROOT = 0
UNVISITED = -1
EPSILON = np.float32(1e-8)  # the least range that Q-values are scaled by
TINY = np.finfo(np.float32).tiny
MAX_PRINCIPAL_VARIATION = 16


def make_policy(network: Network, config: SearchConfig, discount: float) -> Policy:
    """The policy that `config.variant` names, searching with `network`."""
    variants = {"muzero": muzero_policy, "gumbel_muzero": gumbel_muzero_policy}
    search = variants[config.variant]

    def policy(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        return search(inputs, network, config, discount)

    return policy


def muzero_policy(
    inputs: SearchInputs, network: Network, config: SearchConfig, discount: float
) -> PolicyOutput:
    """MuZero: PUCT in all nodes, Dirichlet noise on the root's prior, visits to choose by.

    The action is drawn from `visit_counts ** (1 / temperature)`; with temperature 0 it is the most
    visited one, of equals that with the best Q-value, of equals the first.
    """
    root = network.initial_inference(inputs.observation)
    prior = masked_softmax(root.policy_logits, inputs.legal_actions)
    fraction = (config.dirichlet_fraction * inputs.exploration)[:, None]
    noise = dirichlet(inputs.seed, inputs.legal_actions, config.dirichlet_alpha)
    noisy_prior = (1 - fraction) * prior + fraction * noise
    tree = Tree.planted(root, np.where(inputs.legal_actions, noisy_prior, -np.inf), inputs)

    def select(rows: Ints, nodes: Ints) -> Ints:
        return best_action(puct_scores(tree, rows, nodes, config))

    run(tree, network, select, discount)
    visits, q_values = tree.children_visits[:, ROOT], tree.root_q_values()
    action_weights = visit_probabilities(visits, prior)
    best = most_visited(visits, q_values, inputs.legal_actions, prior)
    action = sample_action(action_weights, inputs.temperature, inputs.seed, best)
    return PolicyOutput(
        action=action,
        action_weights=action_weights,
        value=tree.values[:, ROOT].copy(),
        visit_counts=visits.copy(),
        q_values=q_values,
        prior=prior,
        principal_variation=principal_variation(tree, best),
    )


def gumbel_muzero_policy(
    inputs: SearchInputs, network: Network, config: SearchConfig, discount: float
) -> PolicyOutput:
    """Gumbel MuZero: sequential halving at the root, completed Q-values to learn from.

    The action is the best, by noise, prior and Q-value, of the most visited ones. The noise is what
    samples it, so the temperature scales the noise.
    """
    root = network.initial_inference(inputs.observation)
    legal = inputs.legal_actions
    prior = masked_softmax(root.policy_logits, legal)
    tree = Tree.planted(root, prior, inputs)
    noise = gumbel(inputs.seed, ROOT_NOISE, legal.shape[1])
    noise = (config.gumbel_scale * inputs.exploration * inputs.temperature)[:, None] * noise
    logits = root.policy_logits - root.policy_logits.max(-1, where=legal, initial=-3e38)[:, None]
    logits = np.where(legal, logits, 0)
    schedule = considered_visits(
        np.minimum(legal.sum(-1), config.max_num_considered_actions), inputs.num_simulations
    )

    def root_scores(rows: Ints, considered_visit: Ints) -> Floats:
        """`[B, A]`, −inf for what is illegal or not considered."""
        q_values = completed_q_values(tree, rows, np.zeros_like(rows), config)
        scores = np.maximum(np.float32(-1e9), noise[rows] + logits[rows] + q_values)
        visits = tree.children_visits[rows, ROOT]
        allowed = legal[rows] & (visits == considered_visit[:, None])
        return np.where(allowed, scores, -np.inf)

    def select(rows: Ints, nodes: Ints) -> Ints:
        if nodes[0] != ROOT:  # the rows of a batch are always equally deep
            scores = improved_policy_gaps(tree, rows, nodes, config)
        else:
            simulation = tree.children_visits[rows, ROOT].sum(-1)
            scores = root_scores(rows, schedule[rows, simulation])
        return best_action(scores)

    run(tree, network, select, discount)
    visits = tree.children_visits[:, ROOT].copy()
    all_rows = np.arange(len(legal), dtype=np.int32)
    action = best_action(root_scores(all_rows, visits.max(-1)))
    q_values = completed_q_values(tree, all_rows, np.zeros_like(all_rows), config)
    return PolicyOutput(
        action=action,
        action_weights=masked_softmax(logits + q_values, legal),
        value=tree.values[:, ROOT].copy(),
        visit_counts=visits,
        q_values=tree.root_q_values(),
        prior=prior,
        principal_variation=principal_variation(tree, action),
    )


@dataclass
class Tree:
    """B trees. The node that simulation i (from 1) adds has index i, in all rows; the root is 0."""

    num_simulations: Ints  # [B] after so many a row stands still
    hidden_states: NDArray[Any]  # [B, N, …]
    prior: Floats  # [B, N, A]
    raw_values: Floats  # [B, N] as the network answered
    values: Floats  # [B, N] mean over the visits
    rewards: Floats  # [B, N] of the move into the node
    visits: Ints  # [B, N]
    parents: Ints  # [B, N]
    actions: Ints  # [B, N] that led from the parent
    children: Ints  # [B, N, A] their nodes, or UNVISITED
    children_visits: Ints  # [B, N, A]
    q_values: Floats  # [B, N, A] of actions visited; 0 otherwise
    min_q: Floats  # [B] over every visited action of the tree, at any time
    max_q: Floats  # [B]

    @classmethod
    def planted(cls, root: NetworkOutput, prior: Floats, inputs: SearchInputs) -> Tree:
        """Trees of nothing but their root, with room for the simulations asked for."""
        b, a = prior.shape
        n = int(inputs.num_simulations.max(initial=0)) + 1
        hidden = np.asarray(root.hidden_state)
        tree = cls(
            num_simulations=inputs.num_simulations,
            hidden_states=np.zeros((b, n, *hidden.shape[1:]), hidden.dtype),
            prior=np.zeros((b, n, a), np.float32),
            raw_values=np.zeros((b, n), np.float32),
            values=np.zeros((b, n), np.float32),
            rewards=np.zeros((b, n), np.float32),
            visits=np.zeros((b, n), np.int32),
            parents=np.full((b, n), -1, np.int32),
            actions=np.full((b, n), -1, np.int32),
            children=np.full((b, n, a), UNVISITED, np.int32),
            children_visits=np.zeros((b, n, a), np.int32),
            q_values=np.zeros((b, n, a), np.float32),
            min_q=np.full(b, np.inf, np.float32),
            max_q=np.full(b, -np.inf, np.float32),
        )
        tree.add_node(ROOT, root, prior)
        return tree

    def add_node(self, node: int, output: NetworkOutput, prior: Floats) -> None:
        self.hidden_states[:, node] = output.hidden_state
        self.prior[:, node] = prior
        self.raw_values[:, node] = self.values[:, node] = output.value
        self.rewards[:, node] = output.reward
        self.visits[:, node] = 1

    def root_q_values(self) -> Floats:
        return self.q_values[:, ROOT].copy()


Select = Callable[[Ints, Ints], Ints]
"""Chooses actions `[n]` in the nodes `[n]` of the rows `[n]`."""


def run(tree: Tree, network: Network, select: Select, discount: float) -> None:
    """Grows the trees, each row by its `num_simulations`."""
    for simulation in range(tree.values.shape[1] - 1):
        parent, action = simulate(tree, select, tree.num_simulations > simulation)
        expand(tree, network, simulation + 1, parent, action)
        backward(tree, simulation + 1, tree.num_simulations > simulation, discount)


def simulate(tree: Tree, select: Select, running: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Walks each running row from its root to an action never tried: its node and the action."""
    parent = np.zeros(len(running), np.int32)
    action = np.zeros(len(running), np.int32)
    rows = np.flatnonzero(running).astype(np.int32)
    nodes = np.zeros(len(rows), np.int32)
    while len(rows):
        chosen = select(rows, nodes)
        parent[rows], action[rows] = nodes, chosen
        children = tree.children[rows, nodes, chosen]
        visited = children != UNVISITED
        rows, nodes = rows[visited], children[visited]
    return parent, action


def expand(tree: Tree, network: Network, node: int, parent: Ints, action: Ints) -> None:
    """Adds `node` to all rows: what the network says follows from `action` in `parent`."""
    rows = np.arange(len(parent))
    output = network.recurrent_inference(tree.hidden_states[rows, parent], action)
    tree.add_node(node, output, softmax(output.policy_logits))
    tree.parents[:, node] = parent
    tree.actions[:, node] = action


def backward(tree: Tree, node: int, running: NDArray[np.bool_], discount: float) -> None:
    """Carries the value of `node` up to the root of each running row."""
    rows = np.flatnonzero(running)
    child = np.full(len(rows), node)
    tree.children[rows, tree.parents[rows, child], tree.actions[rows, child]] = child
    value = tree.values[rows, child]
    gamma = np.float32(discount)
    while len(rows):
        parent, action = tree.parents[rows, child], tree.actions[rows, child]
        reward = tree.rewards[rows, child]
        value = reward + gamma * value
        visits = tree.visits[rows, parent].astype(np.float32)
        mean = (tree.values[rows, parent] * visits + value) / (visits + 1)
        q_value = reward + gamma * tree.values[rows, child]
        tree.values[rows, parent] = mean
        tree.visits[rows, parent] += 1
        tree.q_values[rows, parent, action] = q_value
        tree.children_visits[rows, parent, action] += 1
        tree.min_q[rows] = np.minimum(tree.min_q[rows], q_value)
        tree.max_q[rows] = np.maximum(tree.max_q[rows], q_value)
        below = parent != ROOT
        rows, child, value = rows[below], parent[below], value[below]


def puct_scores(tree: Tree, rows: Ints, nodes: Ints, config: SearchConfig) -> Floats:
    """`[n, A]` MuZero's upper confidence bounds: what is worth a visit."""
    visits = tree.visits[rows, nodes].astype(np.float32)[:, None]
    base = np.float32(config.pb_c_base)
    pb_c = np.float32(config.pb_c_init) + np.log((visits + base + 1) / base)
    exploration = np.sqrt(visits) * pb_c * tree.prior[rows, nodes]
    exploration = exploration / (tree.children_visits[rows, nodes] + np.float32(1))
    normalized = {"siblings": normalized_by_siblings, "tree": normalized_by_tree}
    scores: Floats = exploration + normalized[config.normalization](tree, rows, nodes)
    return scores


def normalized_by_siblings(tree: Tree, rows: Ints, nodes: Ints) -> Floats:
    """`[n, A]` Q-values scaled to [0, 1] by the node's value and its actions'; 0 if unvisited."""
    q_values, value = tree.q_values[rows, nodes], tree.values[rows, nodes][:, None]
    visited = tree.children_visits[rows, nodes] > 0
    known = np.where(visited, q_values, value)
    low = np.minimum(value, known.min(-1, keepdims=True))
    high = np.maximum(value, known.max(-1, keepdims=True))
    return np.where(visited, (q_values - low) / np.maximum(high - low, EPSILON), 0)


def normalized_by_tree(tree: Tree, rows: Ints, nodes: Ints) -> Floats:
    """`[n, A]` Q-values scaled to [0, 1] by all that the tree has seen; 0 if unvisited."""
    visited = tree.children_visits[rows, nodes] > 0
    low, high = tree.min_q[rows][:, None], tree.max_q[rows][:, None]
    q_values = np.where(visited, tree.q_values[rows, nodes], low)
    low, high = np.where(np.isfinite(low), (low, high), 0)
    return np.where(visited, (q_values - low) / np.maximum(high - low, EPSILON), 0)


def improved_policy_gaps(tree: Tree, rows: Ints, nodes: Ints, config: SearchConfig) -> Floats:
    """`[n, A]` how far each action's share of the visits is behind the improved policy's."""
    visits = tree.children_visits[rows, nodes].astype(np.float32)
    q_values = completed_q_values(tree, rows, nodes, config)
    improved = tree.prior[rows, nodes] * np.exp(q_values - q_values.max(-1, keepdims=True))
    improved = improved / np.maximum(improved.sum(-1, keepdims=True), TINY)
    gaps: Floats = improved - visits / (1 + visits.sum(-1, keepdims=True))
    return gaps


def completed_q_values(tree: Tree, rows: Ints, nodes: Ints, config: SearchConfig) -> Floats:
    """`[n, A]` scaled Q-values, in place of those unvisited a mean of network and search.

    See appendix D of "Policy improvement by planning with Gumbel".
    """
    visits = tree.children_visits[rows, nodes].astype(np.float32)
    q_values, visited = tree.q_values[rows, nodes], visits > 0
    prior = np.where(visited, np.maximum(tree.prior[rows, nodes], TINY), 0)
    total = visits.sum(-1, keepdims=True)
    prior_sum = np.where(total > 0, prior.sum(-1, keepdims=True), 1)
    weighted_q = (prior * q_values / prior_sum).sum(-1, keepdims=True)
    raw_value = tree.raw_values[rows, nodes][:, None]
    completed = np.where(visited, q_values, (raw_value + total * weighted_q) / (total + 1))
    if config.rescale_values:
        low = completed.min(-1, keepdims=True)
        high = completed.max(-1, keepdims=True)
        completed = (completed - low) / np.maximum(high - low, EPSILON)
    scale: Floats = np.float32(config.value_scale) * (
        np.float32(config.maxvisit_init) + visits.max(-1, keepdims=True)
    )
    return scale * completed


def considered_visits(num_considered: NDArray[np.integer], num_simulations: Ints) -> Ints:
    """`[B, S]` sequential halving: simulation s tries an action with so many visits.

    Of `num_considered` actions all are tried equally often, then the better half, and so on.
    """
    schedule = np.zeros((len(num_simulations), int(num_simulations.max(initial=0))), np.int32)
    for row, (most, budget) in enumerate(zip(num_considered, num_simulations, strict=True)):
        schedule[row, :budget] = _halving(int(most), int(budget))
    return schedule


def _halving(num_considered: int, num_simulations: int) -> list[int]:
    rounds = max(num_considered - 1, 0).bit_length()  # log2, rounded up
    visits: list[int] = []
    while len(visits) < num_simulations:
        if rounds == 0:
            return list(range(num_simulations))
        for _ in range(max(1, num_simulations // (rounds * num_considered))):
            visit = visits[-1] + 1 if visits else 0
            visits += [visit] * num_considered
        num_considered = max(2, num_considered // 2)
    return visits[:num_simulations]


def best_action(scores: Floats) -> Ints:
    """`[n]` the first of the highest scores."""
    action: Ints = np.argmax(scores, axis=-1).astype(np.int32)
    return action


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    prior: Floats = weights / weights.sum(-1, keepdims=True)
    return prior


def masked_softmax(logits: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Zero outside the mask; all zeros where nothing is inside."""
    highest = logits.max(-1, where=mask, initial=np.finfo(np.float32).min)[:, None]
    weights = np.where(mask, np.exp(np.minimum(logits - highest, 0)), 0)
    prior: Floats = weights / np.maximum(weights.sum(-1, keepdims=True), TINY)
    return prior


def visit_probabilities(visits: Ints, prior: Floats) -> Floats:
    """`[B, A]` shares of the visits; the prior where there are none."""
    total = visits.sum(-1, keepdims=True).astype(np.float32)
    return np.where(total > 0, visits / np.maximum(total, 1), prior).astype(np.float32)


def most_visited(visits: Ints, q_values: Floats, legal: NDArray[np.bool_], prior: Floats) -> Ints:
    """`[B]` the most visited action; of equals the best Q-value, without visits the best prior."""
    merit = np.where(visits.max(-1, keepdims=True) > 0, q_values, prior)
    best = legal & (visits == visits.max(-1, keepdims=True))
    return best_action(np.where(best, merit, -np.inf))


def sample_action(weights: Floats, temperature: Floats, seed: Ints, best: Ints) -> Ints:
    """`[B]` actions drawn from `weights ** (1 / temperature)`; `best` where temperature is 0."""
    logits = np.where(weights > 0, np.log(np.maximum(weights, TINY)), -np.inf)
    positive = np.where(temperature > 0, temperature, 1)[:, None]
    drawn = np.argmax(logits / positive + gumbel(seed, ACTION, weights.shape[1]), axis=-1)
    return np.where(temperature > 0, drawn, best).astype(np.int32)


def principal_variation(tree: Tree, action: Ints) -> Ints:
    """`[B, D]` the line of play expected from `action` on, by visits; −1 past its end."""
    rows = np.arange(len(action))
    line = np.full((len(action), MAX_PRINCIPAL_VARIATION), -1, np.int32)
    node, action = np.zeros_like(action), action.copy()
    for depth in range(MAX_PRINCIPAL_VARIATION):
        line[:, depth] = action
        node = np.where(action >= 0, tree.children[rows, node, action], -1)
        visits = tree.children_visits[rows, node]
        action = np.where((node >= 0) & (visits.max(-1) > 0), visits.argmax(-1), -1).astype(
            np.int32
        )
    return line
