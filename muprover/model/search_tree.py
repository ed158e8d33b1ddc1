"""The trees of a graph search: how they lie in memory, and the loop that grows them.

Four things make it fast. Every node remembers, for each of its actions, the untried action at
the end of the best line below (its *leaf*); only the nodes on the path of a simulation change, so
`backward` renews theirs on its way up, and `simulate` is a look at the root instead of a walk down
the tree. Nodes are stored with the node's index first, so that the one which a simulation adds to
all B trees is one slab of memory. And the root, which every path ends in, is kept apart: it needs
no gathering. As every operation costs its launch, `backward` renews several levels of a path at
once; for that a node knows the last edges of the way to it.

Letters as in `search.py`: B games, A actions, S simulations, N = S + 1 nodes; and L levels. An
*edge* is an action in a node, as the number `node · A + action`; those below A are the root's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from muprover.model.convolution import LONGEST

RecurrentInference = Callable[[tf.Tensor, tf.Tensor], Any]
"""hidden_state `[B, …]`, action `[B]` → a `NetworkOutput` of tensors (or a tuple in its order)"""

LEVELS = 4  # L: of each path that are renewed at once, so that operations are launched less often
MANY_GAMES = 32  # for more than so many the work itself is more than the launch: one level


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


class Layout(NamedTuple):
    """How hidden states lie in memory: as they are, `[N, B, …]`, or, those of small boards, by
    squares first, `[N, rows, columns, B, channels]`, as `convolve` works on them: then nothing need
    be turned around in each simulation."""

    squares_first: bool

    @classmethod
    def of(cls, hidden_state: tf.Tensor) -> Layout:
        shape = hidden_state.shape
        return cls(shape.rank == 4 and max(shape[1:3]) <= LONGEST)

    def stored(self, hidden_state: tf.Tensor) -> tf.Tensor:
        """`[B, …]` as a slab of memory."""
        return tf.transpose(hidden_state, [1, 2, 0, 3]) if self.squares_first else hidden_state

    def restored(self, slab: tf.Tensor) -> tf.Tensor:
        return tf.transpose(slab, [2, 0, 1, 3]) if self.squares_first else slab

    def at(self, hidden_states: tf.Tensor, node: tf.Tensor) -> tf.Tensor:
        """A slab of the nodes `[B]`, one of each tree."""
        batch = batch_size(node)
        if not self.squares_first:
            return tf.gather(flat(hidden_states), node * batch + tf.range(batch))
        rows, columns, _, channels = hidden_states.shape[1:]
        square = node * (rows * columns) + tf.range(rows * columns)[:, None]  # [squares, B]
        found = tf.gather(
            tf.reshape(hidden_states, [-1, channels]), square * batch + tf.range(batch)
        )
        return tf.reshape(found, [rows, columns, -1, channels])


class Tree(NamedTuple):
    hidden_states: tf.Tensor  # [N, …] slabs, as the layout has them
    edges: tf.Tensor  # [N, B, 3, A] prior, visits, Q-value
    nodes: tf.Tensor  # [N, B, 4] value, visits, reward, raw value
    paths: tf.Tensor  # [N, B, L] edges: to the node, to its parent, …; after the root's that again
    leaves: tf.Tensor  # [N · B · A] for each edge its leaf (for rules not local its node, or 0)
    root: Stats
    root_leaves: tf.Tensor  # [A, B]
    leaf: tf.Tensor  # [B] the edge to try next
    before: tf.Tensor  # a slab: hidden states of the nodes that these start from


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
    layout = Layout.of(root[0])
    tree = plant(root, prior, rules, room, layout)

    def body(simulation: tf.Tensor, tree: Tree, state: Any) -> Any:
        running = simulation < num_simulations
        new = expand(tree, recurrent_inference, layout)
        tree = tree._replace(paths=_write(tree.paths, simulation + 1, new.path))
        tree = backward(tree, simulation + 1, new, running, rules, discount)
        tree = add_node(tree, simulation + 1, new, layout)
        state = rules.next_root_state(state)
        return simulation + 1, select_leaf(tree, rules, state, layout), state

    most = tf.reduce_max(num_simulations)
    grown: Tree
    _, grown, _ = tf.while_loop(
        lambda simulation, *_: simulation < most, body, (0, tree, rules.first_root_state)
    )
    return grown


def plant(root: Any, prior: tf.Tensor, rules: Rules, room: int, layout: Layout) -> Tree:
    hidden_state, _, value, _ = root
    batch, actions = batch_size(value), prior.shape[0]
    size = (room + 1) * batch
    levels = LEVELS if isinstance(batch, int) and batch <= MANY_GAMES else 1
    before = layout.stored(hidden_state)
    shape = tf.concat([[room + 1], tf.shape(before)], 0)
    hidden_states = _write(tf.zeros(shape, before.dtype), tf.constant(0), before)
    iota = tf.range(actions)
    nodes = tf.range(room + 1)[:, None, None] * actions + tf.zeros([1, batch, 1], tf.int32)
    zeros = tf.zeros_like(prior)
    untried = tf.cast(rules.are_local, tf.int32)
    low = tf.fill([batch], math.inf)
    tree = Tree(
        hidden_states=tf.ensure_shape(hidden_states, [room + 1, *before.shape]),
        edges=tf.zeros([room + 1, batch, 3, actions]),
        nodes=tf.zeros([room + 1, batch, 4]),
        paths=tf.fill([room + 1, batch, levels], -1),
        leaves=tf.reshape(nodes + iota, [size * actions]) * untried,
        root=Stats(prior, zeros, zeros, value, tf.ones_like(value), value, low, -low),
        root_leaves=(iota[:, None] + tf.zeros([1, batch], tf.int32)) * untried,
        leaf=tf.zeros([batch], tf.int32),
        before=before,
    )
    return select_leaf(tree, rules, rules.first_root_state, layout)


def select_leaf(tree: Tree, rules: Rules, state: Any, layout: Layout) -> Tree:
    """`simulate`: which edge each tree tries next, and from which hidden state."""
    actions = tree.root.prior.shape[0]
    action = best_action(rules.root_scores(tree.root, state))
    leaf = at_action(tree.root_leaves, action)
    if not rules.are_local:
        leaf = walk(tree, rules, action, leaf)
    # carried over to the next round, so that XLA gathers row by row, whatever layout is wanted then
    return tree._replace(leaf=leaf, before=layout.at(tree.hidden_states, node_of(leaf, actions)))


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


def expand(tree: Tree, recurrent_inference: RecurrentInference, layout: Layout) -> NewNode:
    """What the network says of the leaf of each tree."""
    actions = tree.root.prior.shape[0]
    action = tree.leaf - node_of(tree.leaf, actions) * actions
    answer = recurrent_inference(layout.restored(tree.before), action)
    return NewNode(path_to(tree, tree.leaf), *answer)


def path_to(tree: Tree, edge: tf.Tensor) -> tf.Tensor:
    """`[B, L]` the last edges of the way to a new node, beginning with the one that leads there."""
    batch, actions = batch_size(tree.root.value), tree.root.prior.shape[0]
    node = node_of(edge, actions)
    before = tf.gather(flat(tree.paths), node * batch + tf.range(batch))
    edge = edge[:, None]
    return tf.where((node > 0)[:, None], tf.concat([edge, before[:, :-1]], 1), edge)


def add_node(tree: Tree, index: tf.Tensor, new: NewNode, layout: Layout) -> Tree:
    """Writes the new node of each tree; after `backward`, so that loops can work in place."""
    prior, ones = tf.nn.softmax(new.policy_logits), tf.ones_like(new.value)
    zeros = tf.zeros_like(prior)
    node = tf.stack([new.value, ones, new.reward, new.value], 1)
    return tree._replace(
        hidden_states=_write(tree.hidden_states, index, layout.stored(new.hidden_state)),
        edges=_write(tree.edges, index, tf.stack([prior, zeros, zeros], 1)),
        nodes=_write(tree.nodes, index, node),
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

    def body(path: Path) -> tuple[Path]:
        return (renew_levels(path, flat(tree.paths), rules, discount),)

    value, root = new.reward + discount * new.value, tree.root
    first = best_action(tf.transpose(new.policy_logits))
    path = Path(
        edges=flat(tree.edges),
        nodes=flat(tree.nodes),
        leaves=tree.leaves,
        taken=tf.where(running, tf.transpose(new.path), 0),
        leaf=index * actions + first if rules.are_local else tf.fill([batch], index),
        value=value,
        q_value=value,
        low=root.low,
        high=root.high,
    )
    (path,) = tf.while_loop(lambda path: tf.reduce_any(path.taken[0] >= actions), body, (path,))
    tried = running & (tf.range(actions)[:, None] == path.taken[0])
    visits = root.node_visits
    root = root._replace(
        visits=tf.where(tried, root.visits + 1, root.visits),
        q_values=tf.where(tried, path.q_value, root.q_values),
        value=tf.where(running, (root.value * visits + path.value) / (visits + 1), root.value),
        node_visits=tf.where(running, visits + 1, visits),
    )
    if not rules.are_local:
        root = root._replace(
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


def renew_levels(path: Path, paths: tf.Tensor, rules: Rules, discount: float) -> Path:
    """L levels further up: renews the nodes that the edges taken start from.

    Levels at and above the root are worked on as well, at node 0, which nobody reads.
    """
    batch, actions, levels = batch_size(path.value), path.edges.shape[2], path.taken.shape[0]
    node = node_of(path.taken, actions)  # [L, B], as all that is not flat
    below = node > 0
    row = tf.reshape(node * batch + tf.range(batch), [-1])  # [L · B]
    action = tf.reshape(path.taken - node * actions, [-1])

    known = tf.gather(path.nodes, row)
    mean, visits, reward, raw_value = tf.unstack(tf.transpose(known))
    reward = tf.where(below, tf.reshape(reward, [levels, batch]), 0)
    values = path_values(path.value, reward, discount)  # [L + 1, B]
    mean = (mean * visits + tf.reshape(values[:-1], [-1])) / (visits + 1)
    above = reward + discount * tf.reshape(mean, [levels, batch])
    q_values = tf.concat([path.q_value[None], above], 0)  # [L + 1, B]

    at = row * (3 * actions) + action
    edges = tf.reshape(path.edges, [-1])
    tried = tf.gather(edges, at + actions) + 1
    edges = _put(
        edges,
        tf.concat([at + actions, at + 2 * actions], 0),
        tf.concat([tried, tf.reshape(q_values[:-1], [-1])], 0),
    )
    edges = tf.reshape(edges, tf.shape(path.edges))
    edge = row * actions + action
    leaves = _put(path.leaves, edge[:batch], path.leaf)
    if rules.are_local:  # read only what has just been written: so XLA can write in place
        stats = Stats(*edges_at(edges, row), mean, visits + 1, raw_value, None, None)
        best = best_action(rules.scores(stats))
        others = tf.reshape(tf.gather(leaves, row * actions + best), [levels, batch])
        leaf = leaves_above(path.leaf, others, tf.reshape(best == action, [levels, batch]))
    else:
        leaf = tf.concat([path.leaf[None], node], 0)
    if levels > 1:
        leaves = _put(leaves, edge[batch:], tf.reshape(leaf[1:-1], [-1]))
    num_renewed = tf.reduce_sum(tf.cast(below, tf.int32), 0)
    level = tf.range(levels + 1)[:, None]

    def at_end(array: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.where(level == num_renewed, array, 0), 0)

    path = path._replace(
        edges=edges,
        nodes=_put(path.nodes, row, tf.stack([mean, visits + 1, known[:, 2], raw_value], 1)),
        leaves=leaves,
        taken=tf.where(below[-1], tf.transpose(tf.gather(paths, row[-batch:])), path.taken[-1]),
        leaf=at_end(leaf),
        value=at_end(values),
        q_value=at_end(q_values),
    )
    if rules.are_local:
        return path
    seen = level <= num_renewed
    return path._replace(
        low=tf.minimum(path.low, tf.reduce_min(tf.where(seen, q_values, math.inf), 0)),
        high=tf.maximum(path.high, tf.reduce_max(tf.where(seen, q_values, -math.inf), 0)),
    )


def leaves_above(leaf: tf.Tensor, others: tf.Tensor, is_best: tf.Tensor) -> tf.Tensor:
    """`[L + 1, B]` the leaf below each edge of a path, and below the node left then, given `[L, B]`
    the leaves of the nodes' best edges, and whether these are the path's own."""
    leaves = [leaf]
    for level in range(others.shape[0]):
        leaves.append(tf.where(is_best[level], leaves[-1], others[level]))
    return tf.stack(leaves)


def path_values(value: tf.Tensor, rewards: tf.Tensor, discount: float) -> tf.Tensor:
    """`[L + 1, B]` of a path from each edge on, for whom it belongs to, given that of the first
    edge `[B]` and the rewards `[L, B]` on the way to the root."""
    level = np.arange(rewards.shape[0] + 1)
    steps = level[:, None] - level
    discounts = np.where(steps >= 0, discount ** np.maximum(steps, 0), 0).astype(np.float32)
    terms = tf.concat([value[None], rewards], 0)
    return tf.reduce_sum(discounts[:, :, None] * terms, 1)


class NewNode(NamedTuple):
    """A node of each tree that is not in it yet."""

    path: tf.Tensor  # [B, L] that leads to it
    hidden_state: tf.Tensor  # [B, …]
    reward: tf.Tensor  # [B]
    value: tf.Tensor  # [B]
    policy_logits: tf.Tensor  # [B, A]


class Path(NamedTuple):
    """`backward` on its way up."""

    edges: tf.Tensor
    nodes: tf.Tensor
    leaves: tf.Tensor
    taken: tf.Tensor  # [L, B] edges, next to be renewed
    leaf: tf.Tensor  # [B] below the first of them
    value: tf.Tensor  # [B] of the path from this edge on, for whom it belongs to
    q_value: tf.Tensor  # [B] of this edge from now on
    low: tf.Tensor  # [B]
    high: tf.Tensor  # [B]


def best_action(scores: tf.Tensor) -> tf.Tensor:
    """`[B]` the first of the highest scores `[A, B]`."""
    return tf.argmax(scores, 0, output_type=tf.int32)


def node_of(edge: tf.Tensor, actions: int) -> tf.Tensor:
    """The nodes that edges start from. `//` would care for negative numbers, and XLA would do so
    again in each operation that it fuses with it."""
    return tf.truncatediv(edge, actions)


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


def _write(array: tf.Tensor, index: tf.Tensor, slab: tf.Tensor) -> tf.Tensor:
    """`[N, …]` with another slab `[…]` at an index."""
    return tf.tensor_scatter_nd_update(array, index[None, None], slab[None])
