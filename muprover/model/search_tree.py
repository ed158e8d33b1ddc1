"""The trees of a graph search: how they lie in memory, and the loop that grows them.

Three things make it fast. Every node remembers, for each of its actions, the untried action at
the end of the best line below (its *leaf*); only the nodes on the path of a simulation change, so
`backward` renews theirs on its way up, and `simulate` is a look at the root instead of a walk down
the tree. Nodes are stored with the node's index first, so that the one which a simulation adds to
all B trees is one slab of memory. And the root, which every path ends in, is kept apart: it needs
no gathering, and the loop over the levels of a path is one round shorter.

Letters as in `search.py`: B games, A actions, S simulations, N = S + 1 nodes. An *edge* is an
action in a node, as the number `node · A + action`; those below A are the root's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

RecurrentInference = Callable[[tf.Tensor, tf.Tensor], Any]
"""hidden_state `[B, …]`, action `[B]` → a `NetworkOutput` of tensors (or a tuple in its order)"""


class Stats(NamedTuple):
    """What is known of one node in each of B trees."""

    prior: tf.Tensor  # [B, A]
    visits: tf.Tensor  # [B, A] of the actions, as floats
    q_values: tf.Tensor  # [B, A] of actions visited; 0 otherwise
    value: tf.Tensor  # [B] mean over the node's visits
    node_visits: tf.Tensor  # [B] 1 + the sum of `visits`
    raw_value: tf.Tensor  # [B] as the network answered
    low: tf.Tensor  # [B] the least Q-value that the tree has ever had
    high: tf.Tensor  # [B] the greatest


class Rules(NamedTuple):
    """How a variant chooses: scores `[B, A]` whose first maximum is the action to try next."""

    root_scores: Callable[[Stats, Any], tf.Tensor]  # given the root's state of the moment
    scores: Callable[[Stats], tf.Tensor]
    first_root_state: Any
    next_root_state: Callable[[Any], Any]  # after each simulation
    are_local: bool  # whether scores change on the path of a simulation only


class Tree(NamedTuple):
    hidden_states: tf.Tensor  # [N, B, …]
    edges: tf.Tensor  # [N · B, 3, A] prior, visits, Q-value
    means: tf.Tensor  # [N · B, 2] value, visits
    facts: tf.Tensor  # [N · B, 2] reward, raw value
    edge_from_parent: tf.Tensor  # [N · B]
    leaves: tf.Tensor  # [N · B · A] for each edge its leaf (for rules not local its node, or 0)
    root: Stats
    root_leaves: tf.Tensor  # [B, A]
    leaf: tf.Tensor  # [B] the edge to try next


def grow(
    root: Any,
    prior: tf.Tensor,
    num_simulations: tf.Tensor,
    recurrent_inference: RecurrentInference,
    rules: Rules,
    discount: float,
    room: int,
) -> Tree:
    """Trees grown from their roots, each row's by its own `num_simulations` (at most `room`)."""
    tree = plant(root, prior, rules, room)

    def body(simulation: tf.Tensor, tree: Tree, state: Any) -> Any:
        running = simulation < num_simulations
        tree, edge, answer, leaf = expand(tree, recurrent_inference, rules, simulation + 1)
        tree = backward(tree, edge, answer, leaf, running, rules, discount)
        state = rules.next_root_state(state)
        return simulation + 1, select_leaf(tree, rules, state), state

    most = tf.reduce_max(num_simulations)
    grown: Tree
    _, grown, _ = tf.while_loop(
        lambda simulation, *_: simulation < most, body, (0, tree, rules.first_root_state)
    )
    return grown


def plant(root: Any, prior: tf.Tensor, rules: Rules, room: int) -> Tree:
    hidden_state, _, value, _ = root
    batch, actions = batch_size(prior), prior.shape[1]
    size = (room + 1) * batch
    shape = tf.concat([[room], tf.shape(hidden_state)], 0)
    hidden_states = tf.concat([hidden_state[None], tf.zeros(shape, hidden_state.dtype)], 0)
    iota = tf.range(actions)
    nodes = tf.range(room + 1)[:, None, None] * actions + tf.zeros([1, batch, 1], tf.int32)
    zeros = tf.zeros_like(prior)
    untried = tf.cast(rules.are_local, tf.int32)
    low = tf.fill([batch], math.inf)
    tree = Tree(
        hidden_states=tf.ensure_shape(hidden_states, [room + 1, *hidden_state.shape]),
        edges=tf.zeros([size, 3, actions]),
        means=tf.zeros([size, 2]),
        facts=tf.zeros([size, 2]),
        edge_from_parent=tf.fill([size], -1),
        leaves=tf.reshape(nodes + iota, [size * actions]) * untried,
        root=Stats(prior, zeros, zeros, value, tf.ones_like(value), value, low, -low),
        root_leaves=(iota + tf.zeros([batch, 1], tf.int32)) * untried,
        leaf=tf.zeros([batch], tf.int32),
    )
    return select_leaf(tree, rules, rules.first_root_state)


def select_leaf(tree: Tree, rules: Rules, state: Any) -> Tree:
    """`simulate`: which edge each tree tries next."""
    action = best_action(rules.root_scores(tree.root, state))
    below = tf.gather(tree.root_leaves, action, batch_dims=1)
    return tree._replace(leaf=below if rules.are_local else walk(tree, rules, action, below))


def walk(tree: Tree, rules: Rules, edge: tf.Tensor, node: tf.Tensor) -> tf.Tensor:
    """The leaf that is found by going down from `edge` to `node`, and on while there are nodes."""
    batch, actions = batch_size(tree.root.prior), tree.root.prior.shape[1]

    def body(edge: tf.Tensor, node: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = node * batch + tf.range(batch)
        mean = tf.gather(tree.means, row)
        action = best_action(rules.scores(stats_at(tree, tree.edges, row, mean[:, 0], mean[:, 1])))
        edge = tf.where(node > 0, node * actions + action, edge)
        return edge, tf.where(node > 0, tf.gather(tree.leaves, row * actions + action), 0)

    edge, _ = tf.while_loop(lambda _, node: tf.reduce_any(node > 0), body, (edge, node))
    return edge


def stats_at(
    tree: Tree, edges: tf.Tensor, row: tf.Tensor, value: tf.Tensor, visits: tf.Tensor
) -> Stats:
    here = tf.gather(edges, row)
    raw_value = tf.gather(tree.facts, row)[:, 1]
    low, high = tree.root.low, tree.root.high
    return Stats(here[:, 0], here[:, 1], here[:, 2], value, visits, raw_value, low, high)


def expand(
    tree: Tree, recurrent_inference: RecurrentInference, rules: Rules, node: tf.Tensor
) -> tuple[Tree, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Adds `node` to all trees, at the end of their leaf; also answers edge, value and leaf."""
    batch, actions = batch_size(tree.root.prior), tree.root.prior.shape[1]
    edge = tree.leaf
    parent = edge // actions
    hidden_states = _flat(tree.hidden_states)
    before = tf.gather(hidden_states, parent * batch + tf.range(batch))
    answer = recurrent_inference(before, edge - parent * actions)
    hidden_state, reward, value, policy_logits = answer
    prior = tf.nn.softmax(policy_logits)
    zeros = tf.zeros_like(prior)

    def write(array: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        slabs = tf.reshape(array, [-1, batch, *array.shape[1:]])
        slabs = tf.tensor_scatter_nd_update(slabs, node[None, None], rows[None])
        return tf.reshape(slabs, tf.shape(array))

    tree = tree._replace(
        hidden_states=tf.tensor_scatter_nd_update(
            tree.hidden_states, node[None, None], hidden_state[None]
        ),
        edges=write(tree.edges, tf.stack([prior, zeros, zeros], 1)),
        means=write(tree.means, tf.stack([value, tf.ones_like(value)], 1)),
        facts=write(tree.facts, tf.stack([reward, value], 1)),
        edge_from_parent=write(tree.edge_from_parent, edge),
    )
    leaf = node * actions + best_action(policy_logits) if rules.are_local else node + 0 * edge
    return tree, edge, (reward, value), leaf


def backward(
    tree: Tree,
    edge: tf.Tensor,
    reward_and_value: tuple[tf.Tensor, tf.Tensor],
    leaf: tf.Tensor,
    running: tf.Tensor,
    rules: Rules,
    discount: float,
) -> Tree:
    """Carries a new node's value up to the root, and the best line's leaf with it."""
    batch, actions = batch_size(tree.root.prior), tree.root.prior.shape[1]
    rows = tf.range(batch)
    reward, value = reward_and_value

    def body(
        edges: tf.Tensor,
        means: tf.Tensor,
        leaves: tf.Tensor,
        edge: tf.Tensor,
        leaf: tf.Tensor,
        value: tf.Tensor,
        q_value: tf.Tensor,
        low: tf.Tensor,
        high: tf.Tensor,
    ) -> Any:
        # Rows that have arrived at the root go on writing, to node 0, which nobody reads.
        node = edge // actions
        action = edge - node * actions
        row = node * batch + rows
        mean = tf.gather(means, row)
        visits = mean[:, 1]
        mean = (mean[:, 0] * visits + value) / (visits + 1)
        means = _put(means, row, tf.stack([mean, visits + 1], 1))
        flat = tf.reshape(edges, [-1])
        at = row * (3 * actions) + action
        tried = tf.gather(flat, at + actions) + 1
        flat = _put(
            flat,
            tf.concat([at + actions, at + 2 * actions], 0),
            tf.concat([tried, q_value], 0),
        )
        edges = tf.reshape(flat, tf.shape(edges))
        leaves = _put(leaves, row * actions + action, leaf)
        if rules.are_local:
            best = best_action(rules.scores(stats_at(tree, edges, row, mean, visits + 1)))
            next_leaf = tf.gather(leaves, row * actions + best)
        else:
            next_leaf = node
        reward = tf.gather(tree.facts, row)[:, 0]
        below = node > 0
        return (
            edges,
            means,
            leaves,
            tf.where(below, tf.gather(tree.edge_from_parent, row), edge),
            tf.where(below, next_leaf, leaf),
            tf.where(below, reward + discount * value, value),
            tf.where(below, reward + discount * mean, q_value),
            tf.minimum(low, q_value),
            tf.maximum(high, q_value),
        )

    start = tf.where(running, edge, 0)
    value = reward + discount * value
    root = tree.root
    loop = (tree.edges, tree.means, tree.leaves, start, leaf, value, value, root.low, root.high)
    edges, means, leaves, edge, leaf, value, q_value, low, high = tf.while_loop(
        lambda _, __, ___, edge, *____: tf.reduce_any(edge >= actions), body, loop
    )
    tried = running[:, None] & (tf.range(actions) == edge[:, None])
    visits = root.node_visits
    root = root._replace(
        visits=tf.where(tried, root.visits + 1, root.visits),
        q_values=tf.where(tried, q_value[:, None], root.q_values),
        value=tf.where(running, (root.value * visits + value) / (visits + 1), root.value),
        node_visits=tf.where(running, visits + 1, visits),
        low=tf.where(running, tf.minimum(low, q_value), root.low),
        high=tf.where(running, tf.maximum(high, q_value), root.high),
    )
    return tree._replace(
        edges=edges,
        means=means,
        leaves=leaves,
        root=root,
        root_leaves=tf.where(tried, leaf[:, None], tree.root_leaves),
    )


def best_action(scores: tf.Tensor) -> tf.Tensor:
    """`[B]` the first of the highest scores."""
    return tf.argmax(scores, -1, output_type=tf.int32)


def batch_size(array: tf.Tensor) -> Any:
    """B: a number where the shape is known, as it is for XLA."""
    return tf.shape(array)[0] if array.shape[0] is None else array.shape[0]


def _flat(array: tf.Tensor) -> tf.Tensor:
    """`[N, B, …]` as `[N · B, …]`."""
    return tf.reshape(array, [-1, *array.shape[2:]])


def _put(array: tf.Tensor, indices: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.tensor_scatter_nd_update(array, indices[:, None], values)
