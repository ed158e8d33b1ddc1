"""`muprover/search.py` as one TensorFlow graph: a whole search is part of the served model.

`search` is called while a `tf.function` is traced. With `jit_compile=True` and known shapes it
becomes one XLA program; without, it is a plain graph that runs anywhere, with any batch size.
Names, numbers and random draws are those of the numpy form.

Letters: B games, A actions, S simulations (the most that the program has room for), N = S + 1
nodes. The node that simulation i (from 1) adds has index i, in all rows; the root is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from muprover.config import SearchConfig
from muprover.model.search_random import dirichlet, gumbel
from muprover.model.search_tree import (
    RecurrentInference,
    Rules,
    Stats,
    Tree,
    batch_size,
    best_action,
    edges_at,
    flat,
    grow,
)
from muprover.search import EPSILON, MAX_PRINCIPAL_VARIATION, TINY
from muprover.search_random import ACTION, ROOT_NOISE

InitialInference = Callable[[tf.Tensor], Any]
"""observation `[B, …]` → a `NetworkOutput` of tensors (or a tuple in its order)"""


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
    legal = inputs.legal_actions
    prior = masked_softmax(root[3], legal)
    fraction = (config.dirichlet_fraction * inputs.exploration)[:, None]
    noisy_prior = (1 - fraction) * prior + fraction * dirichlet(
        inputs.seed, legal, config.dirichlet_alpha
    )
    rules = Rules(
        root_scores=lambda stats, _: puct_scores(stats, config),
        scores=lambda stats: puct_scores(stats, config),
        first_root_state=(),
        next_root_state=lambda state: state,
        are_local=config.normalization == "siblings",
    )
    tree = grow(
        root,
        tf.transpose(tf.where(legal, noisy_prior, -math.inf)),
        inputs.num_simulations,
        recurrent_inference,
        rules,
        discount,
        room,
    )
    visits, q_values = tf.transpose(tree.root.visits), tf.transpose(tree.root.q_values)
    action_weights = visit_probabilities(visits, prior)
    best = most_visited(visits, q_values, legal, prior)
    action = sample_action(action_weights, inputs.temperature, inputs.seed, best)
    return _outputs(tree, action, action_weights, prior, best)


def gumbel_muzero_policy(
    inputs: _Inputs,
    root: Any,
    recurrent_inference: RecurrentInference,
    config: SearchConfig,
    discount: float,
    room: int,
) -> dict[str, tf.Tensor]:
    """Gumbel MuZero: sequential halving at the root, completed Q-values to learn from.

    The noise is what samples the action, so the temperature scales the noise.
    """
    legal, policy_logits = inputs.legal_actions, root[3]
    prior = masked_softmax(policy_logits, legal)
    noise = gumbel(inputs.seed, ROOT_NOISE, legal.shape[1])
    noise = (config.gumbel_scale * inputs.exploration * inputs.temperature)[:, None] * noise
    highest = tf.reduce_max(tf.where(legal, policy_logits, tf.float32.min), -1, keepdims=True)
    logits = tf.where(legal, policy_logits - highest, 0)
    noisy_logits, allowed = tf.transpose(noise + logits), tf.transpose(legal)

    def root_scores(stats: Stats, considered_visit: tf.Tensor) -> tf.Tensor:
        scores = tf.maximum(-1e9, noisy_logits + completed_q_values(stats, config))
        considered = allowed & (stats.visits == tf.cast(considered_visit, tf.float32))
        return tf.where(considered, scores, -math.inf)

    halving = Halving.start(legal, inputs.num_simulations, config.max_num_considered_actions)
    rules = Rules(
        root_scores=lambda stats, state: root_scores(stats, state.visit),
        scores=lambda stats: improved_policy_gaps(stats, config),
        first_root_state=halving,
        next_root_state=lambda state: state.next(inputs.num_simulations),
        are_local=True,
    )
    tree = grow(
        root,
        tf.transpose(prior),
        inputs.num_simulations,
        recurrent_inference,
        rules,
        discount,
        room,
    )
    action = best_action(root_scores(tree.root, tf.reduce_max(tree.root.visits, 0)))
    q_values = tf.transpose(completed_q_values(tree.root, config))
    action_weights = masked_softmax(logits + q_values, legal)
    return _outputs(tree, action, action_weights, prior, action)


def _outputs(
    tree: Tree, action: tf.Tensor, action_weights: tf.Tensor, prior: tf.Tensor, best: tf.Tensor
) -> dict[str, tf.Tensor]:
    return {
        "action": action,
        "action_weights": action_weights,
        "value": tree.root.value,
        "visit_counts": tf.transpose(tf.cast(tree.root.visits, tf.int32)),
        "q_values": tf.transpose(tree.root.q_values),
        "prior": prior,
        "principal_variation": principal_variation(tree, best),
    }


class Halving(NamedTuple):
    """Sequential halving: where each row is, and so which actions it considers.

    Of the actions considered all are tried equally often, then the better half, and so on.
    """

    visit: tf.Tensor  # [B] actions with so many visits are considered
    considered: tf.Tensor  # [B] how many actions
    tries: tf.Tensor  # [B] left in this round, in which each of them is tried once
    repeats: tf.Tensor  # [B] rounds left with as many actions
    halvings: tf.Tensor  # [B] in all

    @classmethod
    def start(cls, legal: tf.Tensor, num_simulations: tf.Tensor, most: int) -> Halving:
        considered = tf.minimum(tf.reduce_sum(tf.cast(legal, tf.int32), -1), most)
        powers = tf.constant([2**i for i in range(31)], tf.int32)
        halvings = tf.reduce_sum(tf.cast(considered[:, None] > powers, tf.int32), -1)
        considered = tf.maximum(1, considered)
        repeats = tf.maximum(1, num_simulations // tf.maximum(1, halvings * considered))
        return cls(tf.zeros_like(considered), considered, considered, repeats, halvings)

    def next(self, num_simulations: tf.Tensor) -> Halving:
        """After one more simulation."""
        round_over = self.tries == 1
        halve = round_over & (self.repeats == 1) & (self.halvings > 0)
        considered = tf.where(halve, tf.maximum(2, self.considered // 2), self.considered)
        repeats = tf.maximum(1, num_simulations // tf.maximum(1, self.halvings * considered))
        return Halving(
            visit=tf.where(round_over, self.visit + 1, self.visit),
            considered=considered,
            tries=tf.where(round_over, considered, self.tries - 1),
            repeats=tf.where(halve, repeats, tf.where(round_over, self.repeats - 1, self.repeats)),
            halvings=self.halvings,
        )


def puct_scores(stats: Stats, config: SearchConfig) -> tf.Tensor:
    """`[A, B]` MuZero's upper confidence bounds: what is worth a visit."""
    total = stats.node_visits
    pb_c = config.pb_c_init + tf.math.log((total + (config.pb_c_base + 1)) / config.pb_c_base)
    exploration = tf.sqrt(total) * pb_c * stats.prior / (stats.visits + 1)
    normalized = {"siblings": normalized_by_siblings, "tree": normalized_by_tree}
    return exploration + normalized[config.normalization](stats)


def normalized_by_siblings(stats: Stats) -> tf.Tensor:
    """`[A, B]` Q-values scaled to [0, 1] by the node's value and its actions'; 0 if unvisited."""
    visited, value = stats.visits > 0, stats.value
    known = tf.where(visited, stats.q_values, value)
    low = tf.minimum(value, tf.reduce_min(known, 0))
    high = tf.maximum(value, tf.reduce_max(known, 0))
    return tf.where(visited, (stats.q_values - low) / tf.maximum(high - low, EPSILON), 0)


def normalized_by_tree(stats: Stats) -> tf.Tensor:
    """`[A, B]` Q-values scaled to [0, 1] by all that the tree has seen; 0 if unvisited."""
    visited, low, high = stats.visits > 0, stats.low, stats.high
    return tf.where(visited, (stats.q_values - low) / tf.maximum(high - low, EPSILON), 0)


def improved_policy_gaps(stats: Stats, config: SearchConfig) -> tf.Tensor:
    """`[A, B]` how far each action's share of the visits is behind the improved policy's."""
    q_values = completed_q_values(stats, config)
    highest = tf.reduce_max(q_values, 0)
    improved = stats.prior * tf.exp(q_values - highest)
    improved = improved / tf.maximum(tf.reduce_sum(improved, 0), TINY)
    return improved - stats.visits / stats.node_visits


def completed_q_values(stats: Stats, config: SearchConfig) -> tf.Tensor:
    """`[A, B]` scaled Q-values, in place of those unvisited a mean of network and search."""
    visited, total = stats.visits > 0, stats.node_visits - 1
    prior = tf.where(visited, tf.maximum(stats.prior, TINY), 0)
    prior_sum = tf.where(total > 0, tf.reduce_sum(prior, 0), 1)
    weighted_q = tf.reduce_sum(prior * stats.q_values / prior_sum, 0)
    mixed = (stats.raw_value + total * weighted_q) / (total + 1)
    completed = tf.where(visited, stats.q_values, mixed)
    if config.rescale_values:
        low, high = tf.reduce_min(completed, 0), tf.reduce_max(completed, 0)
        completed = (completed - low) / tf.maximum(high - low, EPSILON)
    most = tf.reduce_max(stats.visits, 0)
    return config.value_scale * (config.maxvisit_init + most) * completed


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
    return best_action(tf.transpose(tf.where(legal & (visits == most), merit, -float("inf"))))


def sample_action(
    weights: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor, best: tf.Tensor
) -> tf.Tensor:
    """`[B]` actions drawn from `weights ** (1 / temperature)`; `best` where temperature is 0."""
    logits = tf.where(weights > 0, tf.math.log(tf.maximum(weights, TINY)), -float("inf"))
    positive = tf.where(temperature > 0, temperature, 1)[:, None]
    drawn = best_action(tf.transpose(logits / positive + gumbel(seed, ACTION, weights.shape[1])))
    return tf.where(temperature > 0, drawn, best)


def principal_variation(tree: Tree, action: tf.Tensor) -> tf.Tensor:
    """`[B, D]` the line of play expected from `action` on, by visits; −1 past its end."""
    batch, actions = batch_size(action), tree.root.prior.shape[0]
    rows = tf.range(batch)
    parents = tree.paths[:, :, 0]
    depths = tf.range(MAX_PRINCIPAL_VARIATION)

    def body(depth: tf.Tensor, line: tf.Tensor, edge: tf.Tensor) -> Any:
        action = tf.where(edge >= 0, edge % actions, -1)
        line = tf.where(depths == depth, action[:, None], line)
        nodes = tf.range(tf.shape(parents)[0])[:, None]
        node = tf.reduce_max(tf.where((parents == edge) & (nodes > 0), nodes, 0), 0)
        _, visits, _ = edges_at(flat(tree.edges), node * batch + rows)
        goes_on = (node > 0) & (tf.reduce_max(visits, 0) > 0)
        return depth + 1, line, tf.where(goes_on, node * actions + best_action(visits), -1)

    line = tf.zeros_like(depths) - tf.ones_like(action)[:, None]
    _, line, _ = tf.while_loop(
        lambda depth, _, edge: (depth < MAX_PRINCIPAL_VARIATION) & tf.reduce_any(edge >= 0),
        body,
        (0, line, action),
    )
    return line
