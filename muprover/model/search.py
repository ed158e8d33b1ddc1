"""`muprover/search.py` as one TensorFlow graph: a whole search is part of the served model.

`search` is called while a `tf.function` is traced. With `jit_compile=True` and known shapes it
becomes one XLA program; without, it is a plain graph that runs anywhere, with any batch size.
Names, numbers and random draws are those of the numpy form.

Letters: B games, A actions, S simulations (the most that the program has room for), N = S + 1
nodes. The node that simulation i (from 1) adds has index i, in all rows; the root is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from muprover.config import SearchConfig
from muprover.model.search_random import dirichlet, gumbel
from muprover.search import EPSILON, MAX_PRINCIPAL_VARIATION, TINY
from muprover.search_random import ACTION, ROOT_NOISE

InitialInference = Callable[[tf.Tensor], Any]
"""observation `[B, …]` → a `NetworkOutput` of tensors (or a tuple in its order)"""
RecurrentInference = Callable[[tf.Tensor, tf.Tensor], Any]
"""hidden_state `[B, …]`, action `[B]` → the same"""


def search(
    initial_inference: InitialInference,
    recurrent_inference: RecurrentInference,
    observation: tf.Tensor,
    legal_actions: tf.Tensor,
    seed: tf.Tensor,
    num_simulations: tf.Tensor,
    temperature: tf.Tensor,
    exploration: tf.Tensor,
    *,
    config: SearchConfig,
    discount: float,
    max_num_simulations: int | None = None,
) -> dict[str, tf.Tensor]:
    """The fields of `PolicyOutput` for the fields of `SearchInputs`, by `config.variant`.

    `discount` is the signed one. The program has room for `max_num_simulations` (by default the
    config's); a row that asks for more gets as many.
    """
    room = config.max_num_simulations if max_num_simulations is None else max_num_simulations
    num_simulations = tf.clip_by_value(num_simulations, 0, room)
    root = initial_inference(observation)
    inputs = _Inputs(legal_actions, seed, num_simulations, temperature, exploration)
    variants = {"muzero": muzero_policy, "gumbel_muzero": gumbel_muzero_policy}
    return variants[config.variant](inputs, root, recurrent_inference, config, discount, room)


class _Inputs(NamedTuple):
    legal_actions: tf.Tensor
    seed: tf.Tensor
    num_simulations: tf.Tensor
    temperature: tf.Tensor
    exploration: tf.Tensor


def muzero_policy(
    inputs: _Inputs,
    root: Any,
    recurrent_inference: RecurrentInference,
    config: SearchConfig,
    discount: float,
    room: int,
) -> dict[str, tf.Tensor]:
    """MuZero: PUCT in all nodes, Dirichlet noise on the root's prior, visits to choose by."""
    prior = masked_softmax(root[3], inputs.legal_actions)
    fraction = (config.dirichlet_fraction * inputs.exploration)[:, None]
    noise = dirichlet(inputs.seed, inputs.legal_actions, config.dirichlet_alpha)
    noisy_prior = (1 - fraction) * prior + fraction * noise
    tree = plant(root, tf.where(inputs.legal_actions, noisy_prior, -float("inf")), room)

    def select(tree: Tree, nodes: tf.Tensor, is_root: tf.Tensor) -> tf.Tensor:
        return best_action(puct_scores(tree, nodes, config))

    tree = run(tree, inputs.num_simulations, recurrent_inference, select, discount)
    visits, q_values = tree.children_visits[:, 0], tree.q_values[:, 0]
    action_weights = visit_probabilities(visits, prior)
    best = most_visited(visits, q_values, inputs.legal_actions, prior)
    return {
        "action": sample_action(action_weights, inputs.temperature, inputs.seed, best),
        "action_weights": action_weights,
        "value": tree.values[:, 0],
        "visit_counts": visits,
        "q_values": q_values,
        "prior": prior,
        "principal_variation": principal_variation(tree, best),
    }


def gumbel_muzero_policy(
    inputs: _Inputs,
    root: Any,
    recurrent_inference: RecurrentInference,
    config: SearchConfig,
    discount: float,
    room: int,
) -> dict[str, tf.Tensor]:
    """Gumbel MuZero: sequential halving at the root, completed Q-values to learn from."""
    legal, policy_logits = inputs.legal_actions, root[3]
    prior = masked_softmax(policy_logits, legal)
    tree = plant(root, prior, room)
    noise = gumbel(inputs.seed, ROOT_NOISE, legal.shape[1])
    noise = (config.gumbel_scale * inputs.exploration)[:, None] * noise
    highest = tf.reduce_max(tf.where(legal, policy_logits, tf.float32.min), -1, keepdims=True)
    logits = tf.where(legal, policy_logits - highest, 0)
    schedule = considered_visits(
        tf.minimum(tf.reduce_sum(tf.cast(legal, tf.int32), -1), config.max_num_considered_actions),
        inputs.num_simulations,
        room,
    )

    def root_scores(tree: Tree, considered_visit: tf.Tensor) -> tf.Tensor:
        q_values = completed_q_values(tree, tf.zeros_like(inputs.num_simulations), config)
        scores = tf.maximum(-1e9, noise + logits + q_values)
        allowed = legal & (tree.children_visits[:, 0] == considered_visit[:, None])
        return tf.where(allowed, scores, -float("inf"))

    def select(tree: Tree, nodes: tf.Tensor, is_root: tf.Tensor) -> tf.Tensor:
        simulation = tf.minimum(tf.reduce_sum(tree.children_visits[:, 0], -1), room - 1)
        considered = tf.gather(schedule, simulation, batch_dims=1)
        scores = tf.where(
            is_root, root_scores(tree, considered), improved_policy_gaps(tree, nodes, config)
        )
        return best_action(scores)

    tree = run(tree, inputs.num_simulations, recurrent_inference, select, discount)
    visits = tree.children_visits[:, 0]
    action = best_action(root_scores(tree, tf.reduce_max(visits, -1)))
    q_values = completed_q_values(tree, tf.zeros_like(inputs.num_simulations), config)
    return {
        "action": action,
        "action_weights": masked_softmax(logits + q_values, legal),
        "value": tree.values[:, 0],
        "visit_counts": visits,
        "q_values": tree.q_values[:, 0],
        "prior": prior,
        "principal_variation": principal_variation(tree, action),
    }


class Tree(NamedTuple):
    """B trees, as in the numpy form."""

    hidden_states: tf.Tensor  # [B, N, …]
    prior: tf.Tensor  # [B, N, A]
    raw_values: tf.Tensor  # [B, N]
    values: tf.Tensor  # [B, N]
    rewards: tf.Tensor  # [B, N]
    visits: tf.Tensor  # [B, N]
    parents: tf.Tensor  # [B, N]
    actions: tf.Tensor  # [B, N]
    children: tf.Tensor  # [B, N, A]
    children_visits: tf.Tensor  # [B, N, A]
    q_values: tf.Tensor  # [B, N, A]
    min_q: tf.Tensor  # [B]
    max_q: tf.Tensor  # [B]


Select = Callable[[Tree, tf.Tensor, tf.Tensor], tf.Tensor]


def plant(root: Any, prior: tf.Tensor, room: int) -> Tree:
    hidden_state, _, value, _ = root
    batch, actions = tf.shape(prior)[0], prior.shape[1]

    def with_room(first: tf.Tensor) -> tf.Tensor:
        rest = tf.zeros(tf.concat([[batch, room], tf.shape(first)[1:]], 0), first.dtype)
        joined = tf.concat([first[:, None], rest], 1)
        return tf.ensure_shape(joined, [first.shape[0], room + 1, *first.shape[1:]])

    nodes, edges = tf.zeros([batch, room + 1]), tf.zeros([batch, room + 1, actions])
    return Tree(
        hidden_states=with_room(hidden_state),
        prior=with_room(prior),
        raw_values=with_room(value),
        values=with_room(value),
        rewards=nodes,
        visits=with_room(tf.ones_like(value, tf.int32)),
        parents=tf.cast(nodes, tf.int32) - 1,
        actions=tf.cast(nodes, tf.int32) - 1,
        children=tf.cast(edges, tf.int32) - 1,
        children_visits=tf.cast(edges, tf.int32),
        q_values=edges,
        min_q=tf.fill([batch], float("inf")),
        max_q=tf.fill([batch], -float("inf")),
    )


def run(
    tree: Tree,
    num_simulations: tf.Tensor,
    recurrent_inference: RecurrentInference,
    select: Select,
    discount: float,
) -> Tree:
    """Grows the trees, each row by its `num_simulations`."""

    def body(simulation: tf.Tensor, tree: Tree) -> tuple[tf.Tensor, Tree]:
        running = num_simulations > simulation
        parent, action = simulate(tree, select, running)
        tree = expand(tree, recurrent_inference, simulation + 1, parent, action)
        return simulation + 1, backward(tree, simulation + 1, running, discount)

    most = tf.reduce_max(num_simulations)
    _, tree = tf.while_loop(lambda simulation, _: simulation < most, body, (0, tree))
    return tree


def simulate(tree: Tree, select: Select, running: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Walks each running row from its root to an action never tried: its node and the action."""

    def body(walking: tf.Tensor, parent: tf.Tensor, action: tf.Tensor, depth: tf.Tensor) -> Any:
        child = tf.gather(tf.gather(tree.children, parent, batch_dims=1), action, batch_dims=1)
        parent = tf.where(walking & (depth > 0), child, parent)
        chosen = tf.where(walking, select(tree, parent, depth == 0), action)
        child = tf.gather(tf.gather(tree.children, parent, batch_dims=1), chosen, batch_dims=1)
        return walking & (child >= 0), parent, chosen, depth + 1

    start = tf.zeros_like(running, tf.int32)
    _, parent, action, _ = tf.while_loop(
        lambda walking, *_: tf.reduce_any(walking), body, (running, start, start, 0)
    )
    return parent, action


def expand(
    tree: Tree,
    recurrent_inference: RecurrentInference,
    node: tf.Tensor,
    parent: tf.Tensor,
    action: tf.Tensor,
) -> Tree:
    """Adds `node` to all rows: what the network says follows from `action` in `parent`."""
    output = recurrent_inference(tf.gather(tree.hidden_states, parent, batch_dims=1), action)
    hidden_state, reward, value, policy_logits = output
    return tree._replace(
        hidden_states=_write(tree.hidden_states, node, hidden_state),
        prior=_write(tree.prior, node, tf.nn.softmax(policy_logits)),
        raw_values=_write(tree.raw_values, node, value),
        values=_write(tree.values, node, value),
        rewards=_write(tree.rewards, node, reward),
        visits=_write(tree.visits, node, tf.ones_like(parent)),
        parents=_write(tree.parents, node, parent),
        actions=_write(tree.actions, node, action),
    )


def backward(tree: Tree, node: tf.Tensor, running: tf.Tensor, discount: float) -> Tree:
    """Carries the value of `node` up to the root of each running row."""
    child = tf.where(running, tf.fill(tf.shape(running), node), 0)
    edge = tf.stack([_rows(child), _at(tree.parents, child), _at(tree.actions, child)], -1)
    edge = tf.where(running[:, None], edge, tf.shape(tree.children, tf.int32))
    tree = tree._replace(children=_scatter(tree.children, edge, child))

    def body(tree: Tree, child: tf.Tensor, value: tf.Tensor) -> Any:
        walking = child > 0
        reward = _at(tree.rewards, child)
        parent = tf.where(walking, _at(tree.parents, child), 0)
        action = tf.where(walking, _at(tree.actions, child), 0)
        value = reward + discount * value
        visits = tf.cast(_at(tree.visits, parent), tf.float32)
        mean = (_at(tree.values, parent) * visits + value) / (visits + 1)
        q_value = reward + discount * _at(tree.values, child)
        edge = tf.stack([_rows(child), parent, action], -1)
        edge = tf.where(walking[:, None], edge, tf.shape(tree.children, tf.int32))
        here = edge[:, :2]
        tree = tree._replace(
            values=_scatter(tree.values, here, mean),
            visits=_scatter(tree.visits, here, tf.cast(visits, tf.int32) + 1),
            q_values=_scatter(tree.q_values, edge, q_value),
            children_visits=_scatter(
                tree.children_visits,
                edge,
                tf.gather(_at(tree.children_visits, parent), action, batch_dims=1) + 1,
            ),
            min_q=tf.where(walking, tf.minimum(tree.min_q, q_value), tree.min_q),
            max_q=tf.where(walking, tf.maximum(tree.max_q, q_value), tree.max_q),
        )
        return tree, parent, value

    tree, _, _ = tf.while_loop(
        lambda _, child, __: tf.reduce_any(child > 0),
        body,
        (tree, child, _at(tree.values, child)),
    )
    return tree


def _at(array: tf.Tensor, nodes: tf.Tensor) -> tf.Tensor:
    return tf.gather(array, nodes, batch_dims=1)


def _rows(like: tf.Tensor) -> tf.Tensor:
    return tf.range(tf.shape(like)[0])


def _scatter(array: tf.Tensor, indices: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.TensorScatterUpdate(
        tensor=array, indices=indices, updates=values, bad_indices_policy="IGNORE"
    )


def _write(array: tf.Tensor, node: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    rows = tf.range(tf.shape(values)[0])
    indices = tf.stack([rows, tf.fill(tf.shape(rows), node)], -1)
    return tf.tensor_scatter_nd_update(array, indices, values)


def puct_scores(tree: Tree, nodes: tf.Tensor, config: SearchConfig) -> tf.Tensor:
    """`[B, A]` MuZero's upper confidence bounds: what is worth a visit."""
    visits = tf.cast(_at(tree.visits, nodes), tf.float32)[:, None]
    pb_c = config.pb_c_init + tf.math.log((visits + config.pb_c_base + 1) / config.pb_c_base)
    children_visits = tf.cast(_at(tree.children_visits, nodes), tf.float32)
    exploration = tf.sqrt(visits) * pb_c * _at(tree.prior, nodes) / (children_visits + 1)
    normalized = {"siblings": normalized_by_siblings, "tree": normalized_by_tree}
    return exploration + normalized[config.normalization](tree, nodes)


def normalized_by_siblings(tree: Tree, nodes: tf.Tensor) -> tf.Tensor:
    q_values, value = _at(tree.q_values, nodes), _at(tree.values, nodes)[:, None]
    visited = _at(tree.children_visits, nodes) > 0
    known = tf.where(visited, q_values, value)
    low = tf.minimum(value, tf.reduce_min(known, -1, keepdims=True))
    high = tf.maximum(value, tf.reduce_max(known, -1, keepdims=True))
    return tf.where(visited, (q_values - low) / tf.maximum(high - low, EPSILON), 0)


def normalized_by_tree(tree: Tree, nodes: tf.Tensor) -> tf.Tensor:
    visited = _at(tree.children_visits, nodes) > 0
    q_values = _at(tree.q_values, nodes)
    low, high = tree.min_q[:, None], tree.max_q[:, None]
    return tf.where(visited, (q_values - low) / tf.maximum(high - low, EPSILON), 0)


def improved_policy_gaps(tree: Tree, nodes: tf.Tensor, config: SearchConfig) -> tf.Tensor:
    """`[B, A]` how far each action's share of the visits is behind the improved policy's."""
    visits = tf.cast(_at(tree.children_visits, nodes), tf.float32)
    q_values = completed_q_values(tree, nodes, config)
    highest = tf.reduce_max(q_values, -1, keepdims=True)
    improved = _at(tree.prior, nodes) * tf.exp(q_values - highest)
    improved = improved / tf.maximum(tf.reduce_sum(improved, -1, keepdims=True), TINY)
    return improved - visits / (1 + tf.reduce_sum(visits, -1, keepdims=True))


def completed_q_values(tree: Tree, nodes: tf.Tensor, config: SearchConfig) -> tf.Tensor:
    """`[B, A]` scaled Q-values, in place of those unvisited a mean of network and search."""
    visits = tf.cast(_at(tree.children_visits, nodes), tf.float32)
    q_values, visited = _at(tree.q_values, nodes), visits > 0
    prior = tf.where(visited, tf.maximum(_at(tree.prior, nodes), TINY), 0)
    total = tf.reduce_sum(visits, -1, keepdims=True)
    prior_sum = tf.where(total > 0, tf.reduce_sum(prior, -1, keepdims=True), 1)
    weighted_q = tf.reduce_sum(prior * q_values / prior_sum, -1, keepdims=True)
    raw_value = _at(tree.raw_values, nodes)[:, None]
    completed = tf.where(visited, q_values, (raw_value + total * weighted_q) / (total + 1))
    low = tf.reduce_min(completed, -1, keepdims=True)
    high = tf.reduce_max(completed, -1, keepdims=True)
    scale = config.value_scale * (config.maxvisit_init + tf.reduce_max(visits, -1, keepdims=True))
    return scale * ((completed - low) / tf.maximum(high - low, EPSILON))


def considered_visits(
    num_considered: tf.Tensor, num_simulations: tf.Tensor, room: int
) -> tf.Tensor:
    """`[B, S]` sequential halving: simulation s tries an action with so many visits."""
    powers = tf.constant([2**i for i in range(31)], tf.int32)
    rounds = tf.reduce_sum(tf.cast(num_considered[:, None] > powers, tf.int32), -1)

    def extra(considered: tf.Tensor) -> tf.Tensor:
        return tf.maximum(1, num_simulations // tf.maximum(1, rounds * considered))

    considered = tf.maximum(1, num_considered)
    visit = tf.zeros_like(considered)
    tries, repeats = considered, extra(considered)
    schedule = []
    for _ in range(room):
        schedule.append(visit)
        tries -= 1
        visit = tf.where(tries == 0, visit + 1, visit)
        repeats = tf.where(tries == 0, repeats - 1, repeats)
        halve = (repeats == 0) & (rounds > 0)
        considered = tf.where(halve, tf.maximum(2, considered // 2), considered)
        repeats = tf.where(halve, extra(considered), repeats)
        tries = tf.where(tries == 0, considered, tries)
    return tf.stack(schedule, -1)


def best_action(scores: tf.Tensor) -> tf.Tensor:
    """`[B]` the first of the highest scores."""
    return tf.argmax(scores, -1, output_type=tf.int32)


def masked_softmax(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Zero outside the mask; all zeros where nothing is inside."""
    highest = tf.reduce_max(tf.where(mask, logits, tf.float32.min), -1, keepdims=True)
    weights = tf.where(mask, tf.exp(tf.minimum(logits - highest, 0)), 0)
    return weights / tf.maximum(tf.reduce_sum(weights, -1, keepdims=True), TINY)


def visit_probabilities(visits: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
    """`[B, A]` shares of the visits; the prior where there are none."""
    total = tf.cast(tf.reduce_sum(visits, -1, keepdims=True), tf.float32)
    return tf.where(total > 0, tf.cast(visits, tf.float32) / tf.maximum(total, 1), prior)


def most_visited(
    visits: tf.Tensor, q_values: tf.Tensor, legal: tf.Tensor, prior: tf.Tensor
) -> tf.Tensor:
    """`[B]` the most visited action; of equals the best Q-value, without visits the best prior."""
    most = tf.reduce_max(visits, -1, keepdims=True)
    merit = tf.where(most > 0, q_values, prior)
    return best_action(tf.where(legal & (visits == most), merit, -float("inf")))


def sample_action(
    weights: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor, best: tf.Tensor
) -> tf.Tensor:
    """`[B]` actions drawn from `weights ** (1 / temperature)`; `best` where temperature is 0."""
    logits = tf.where(weights > 0, tf.math.log(tf.maximum(weights, TINY)), -float("inf"))
    positive = tf.where(temperature > 0, temperature, 1)[:, None]
    drawn = best_action(logits / positive + gumbel(seed, ACTION, weights.shape[1]))
    return tf.where(temperature > 0, drawn, best)


def principal_variation(tree: Tree, action: tf.Tensor) -> tf.Tensor:
    """`[B, D]` the line of play expected from `action` on, by visits; −1 past its end."""
    node, line = tf.zeros_like(action), []
    for _ in range(MAX_PRINCIPAL_VARIATION):
        line.append(action)
        child = tf.gather(
            _at(tree.children, tf.maximum(node, 0)), tf.maximum(action, 0), batch_dims=1
        )
        node = tf.where(action >= 0, child, -1)
        visits = _at(tree.children_visits, tf.maximum(node, 0))
        goes_on = (node >= 0) & (tf.reduce_max(visits, -1) > 0)
        action = tf.where(goes_on, best_action(visits), -1)
    return tf.stack(line, -1)
