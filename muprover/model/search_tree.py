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
    """What is known of one node in each of B trees; the trees come last, so that processors work
    on many at once."""

    prior: tf.Tensor  # [A, B]
    visits: tf.Tensor  # [A, B] of the actions, as floats
    q_values: tf.Tensor  # [A, B] of actions visited; 0 otherwise
    value: tf.Tensor  # [B] mean over the node's visits
    node_visits: tf.Tensor  # [B] 1 + the sum of `visits`
    raw_value: tf.Tensor  # [B] as the network answered
    low: tf.Tensor  # [B] the least Q-value that the tree has ever had
    high: tf.Tensor  # [B] the greatest


class Rules(NamedTuple):
    """How a variant chooses: scores `[A, B]` whose first maximum is the action to try next."""

    root_scores: Callable[[Stats, Any], tf.Tensor]  # given the root's state of the moment
    scores: Callable[[Stats], tf.Tensor]
    first_root_state: Any
    next_root_state: Callable[[Any], Any]  # after each simulation
    are_local: bool  # whether scores change on the path of a simulation only


class Tree(NamedTuple):
    hidden_states: tf.Tensor  # [N, B, …]
    edges: tf.Tensor  # [N, B, 3, A] prior, visits, Q-value
    nodes: tf.Tensor  # [N, B, 5] value, visits, reward, raw value, edge from the parent
    leaves: tf.Tensor  # [N · B · A] for each edge its leaf (for rules not local its node, or 0)
    root: Stats
    root_leaves: tf.Tensor  # [A, B]
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
        new = expand(tree, recurrent_inference)
        tree = backward(tree, simulation + 1, new, running, rules, discount)
        tree = add_node(tree, simulation + 1, new)
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
    batch, actions = batch_size(value), prior.shape[0]
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
        edges=tf.zeros([room + 1, batch, 3, actions]),
        nodes=tf.fill([room + 1, batch, 5], -1.0),
        leaves=tf.reshape(nodes + iota, [size * actions]) * untried,
        root=Stats(prior, zeros, zeros, value, tf.ones_like(value), value, low, -low),
        root_leaves=(iota[:, None] + tf.zeros([1, batch], tf.int32)) * untried,
        leaf=tf.zeros([batch], tf.int32),
    )
    return select_leaf(tree, rules, rules.first_root_state)


def select_leaf(tree: Tree, rules: Rules, state: Any) -> Tree:
    """`simulate`: which edge each tree tries next."""
    action = best_action(rules.root_scores(tree.root, state))
    below = at_action(tree.root_leaves, action)
    return tree._replace(leaf=below if rules.are_local else walk(tree, rules, action, below))


def walk(tree: Tree, rules: Rules, edge: tf.Tensor, node: tf.Tensor) -> tf.Tensor:
    """The leaf that is found by going down from `edge` to `node`, and on while there are nodes."""
    batch, actions = batch_size(tree.root.value), tree.root.prior.shape[0]

    def body(edge: tf.Tensor, node: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        row = node * batch + tf.range(batch)
        action = best_action(
            rules.scores(stats_at(flat(tree.edges), flat(tree.nodes), row, tree.root))
        )
        edge = tf.where(node > 0, node * actions + action, edge)
        return edge, tf.where(node > 0, tf.gather(tree.leaves, row * actions + action), 0)

    edge, _ = tf.while_loop(lambda _, node: tf.reduce_any(node > 0), body, (edge, node))
    return edge


def stats_at(edges: tf.Tensor, nodes: tf.Tensor, row: tf.Tensor, root: Stats) -> Stats:
    prior, visits, q_values = edges_at(edges, row)
    node = tf.gather(nodes, row)
    return Stats(prior, visits, q_values, node[:, 0], node[:, 1], node[:, 3], root.low, root.high)


def edges_at(edges: tf.Tensor, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Prior, visits and Q-values, `[A, B]` each, of the edges `[N · B, 3, A]` in given rows."""
    prior, visits, q_values = tf.unstack(tf.transpose(tf.gather(edges, row), [1, 2, 0]))
    return prior, visits, q_values


def expand(tree: Tree, recurrent_inference: RecurrentInference) -> NewNode:
    """What the network says of the leaf of each tree."""
    batch, actions = batch_size(tree.root.value), tree.root.prior.shape[0]
    parent = tree.leaf // actions
    before = tf.gather(flat(tree.hidden_states), parent * batch + tf.range(batch))
    answer = recurrent_inference(before, tree.leaf - parent * actions)
    hidden_state, reward, value, policy_logits = answer
    return NewNode(tree.leaf, hidden_state, reward, value, policy_logits)


def add_node(tree: Tree, index: tf.Tensor, new: NewNode) -> Tree:
    """Writes the new node of each tree; after `backward`, so that loops can work in place."""
    prior, ones = tf.nn.softmax(new.policy_logits), tf.ones_like(new.value)
    zeros = tf.zeros_like(prior)
    edge = tf.cast(new.edge, tf.float32)

    def write(array: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        return tf.tensor_scatter_nd_update(array, index[None, None], rows[None])

    return tree._replace(
        hidden_states=write(tree.hidden_states, new.hidden_state),
        edges=write(tree.edges, tf.stack([prior, zeros, zeros], 1)),
        nodes=write(tree.nodes, tf.stack([new.value, ones, new.reward, new.value, edge], 1)),
    )


def backward(
    tree: Tree,
    index: tf.Tensor,
    new: NewNode,
    running: tf.Tensor,
    rules: Rules,
    discount: float,
) -> Tree:
    """Carries a new node's value up to the root, and the best line's leaf with it."""
    batch, actions = batch_size(tree.root.value), tree.root.prior.shape[0]
    rows = tf.range(batch)

    def body(path: Path) -> tuple[Path]:
        # Rows that have arrived at the root go on writing, to node 0, which nobody reads.
        node = path.edge // actions
        action = path.edge - node * actions
        row = node * batch + rows
        known = tf.gather(path.nodes, row)
        visits, reward = known[:, 1], known[:, 2]
        value = (known[:, 0] * visits + path.value) / (visits + 1)
        known = tf.concat([tf.stack([value, visits + 1], 1), known[:, 2:]], 1)
        nodes = _put(path.nodes, row, known)
        at = row * (3 * actions) + action
        edges = tf.reshape(path.edges, [-1])
        tried = tf.gather(edges, at + actions) + 1
        edges = _put(
            edges,
            tf.concat([at + actions, at + 2 * actions], 0),
            tf.concat([tried, path.q_value], 0),
        )
        edges = tf.reshape(edges, tf.shape(path.edges))
        leaves = _put(path.leaves, row * actions + action, path.leaf)
        if rules.are_local:
            here = edges_at(edges, row)
            stats = Stats(*here, value, visits + 1, known[:, 3], None, None)
            best = best_action(rules.scores(stats))
            leaf = tf.gather(leaves, row * actions + best)
        else:
            leaf = node
        below = node > 0
        path = Path(
            edges=edges,
            nodes=nodes,
            leaves=leaves,
            edge=tf.where(below, tf.cast(known[:, 4], tf.int32), path.edge),
            leaf=tf.where(below, leaf, path.leaf),
            value=tf.where(below, reward + discount * path.value, path.value),
            q_value=tf.where(below, reward + discount * value, path.q_value),
            low=tf.minimum(path.low, path.q_value),
            high=tf.maximum(path.high, path.q_value),
        )
        return (path,)

    value, root = new.reward + discount * new.value, tree.root
    start = tf.where(running, new.edge, 0)
    first = best_action(tf.transpose(new.policy_logits))
    leaf = index * actions + first if rules.are_local else index + 0 * start
    path = Path(
        flat(tree.edges),
        flat(tree.nodes),
        tree.leaves,
        start,
        leaf,
        value,
        value,
        root.low,
        root.high,
    )
    (path,) = tf.while_loop(lambda path: tf.reduce_any(path.edge >= actions), body, (path,))
    tried = running & (tf.range(actions)[:, None] == path.edge)
    visits = root.node_visits
    root = root._replace(
        visits=tf.where(tried, root.visits + 1, root.visits),
        q_values=tf.where(tried, path.q_value, root.q_values),
        value=tf.where(running, (root.value * visits + path.value) / (visits + 1), root.value),
        node_visits=tf.where(running, visits + 1, visits),
        low=tf.where(running, tf.minimum(path.low, path.q_value), root.low),
        high=tf.where(running, tf.maximum(path.high, path.q_value), root.high),
    )
    return tree._replace(
        edges=tf.reshape(path.edges, tf.shape(tree.edges)),
        nodes=tf.reshape(path.nodes, tf.shape(tree.nodes)),
        leaves=path.leaves,
        root=root,
        root_leaves=tf.where(tried, path.leaf, tree.root_leaves),
    )


class NewNode(NamedTuple):
    """A node of each tree that is not in it yet."""

    edge: tf.Tensor  # [B] that leads to it
    hidden_state: tf.Tensor  # [B, …]
    reward: tf.Tensor  # [B]
    value: tf.Tensor  # [B]
    policy_logits: tf.Tensor  # [B, A]


class Path(NamedTuple):
    """`backward` on its way up."""

    edges: tf.Tensor
    nodes: tf.Tensor
    leaves: tf.Tensor
    edge: tf.Tensor  # [B] taken by the path, next to be renewed
    leaf: tf.Tensor  # [B] below it
    value: tf.Tensor  # [B] of the path from this edge on, for whom it belongs to
    q_value: tf.Tensor  # [B] of this edge from now on
    low: tf.Tensor  # [B]
    high: tf.Tensor  # [B]


def best_action(scores: tf.Tensor) -> tf.Tensor:
    """`[B]` the first of the highest scores `[A, B]`."""
    return tf.argmax(scores, 0, output_type=tf.int32)


def at_action(array: tf.Tensor, action: tf.Tensor) -> tf.Tensor:
    """`[B]` what an array `[A, B]` has for the actions `[B]`."""
    return tf.gather_nd(array, tf.stack([action, tf.range(batch_size(action))], -1))


def batch_size(array: tf.Tensor) -> Any:
    """B: a number where the shape is known, as it is for XLA."""
    return tf.shape(array)[0] if array.shape[0] is None else array.shape[0]


def flat(array: tf.Tensor) -> tf.Tensor:
    """`[N, B, …]` as `[N · B, …]`."""
    return tf.reshape(array, [-1, *array.shape[2:]])


def _put(array: tf.Tensor, indices: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.tensor_scatter_nd_update(array, indices[:, None], values)
