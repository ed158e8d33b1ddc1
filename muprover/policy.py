"""What crosses the seams around a search: what it asks of a network, and what is asked of it.

Letters: B games, A actions.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class NetworkOutput(NamedTuple):
    """What a network says of B positions."""

    hidden_state: Array  # [B, …]
    reward: NDArray[np.float32]  # [B] of the move that led here, for who made it; 0 at a root
    value: NDArray[np.float32]  # [B] for the player to move
    policy_logits: NDArray[np.float32]  # [B, A]


class Network(Protocol):
    """The learned model, wherever it runs."""

    def initial_inference(self, observation: Array) -> NetworkOutput:
        """Of `[B, …]` (stacked) observations."""

    def recurrent_inference(self, hidden_state: Array, action: Array) -> NetworkOutput:
        """Of `[B, …]` hidden states and the actions `[B]` taken in them."""


class SearchInputs(NamedTuple):
    """Everything a search depends on but the network, a row for each of B games."""

    observation: Array  # [B, …] stacked
    legal_actions: NDArray[np.bool_]  # [B, A]
    seed: NDArray[np.int32]  # [B, 2]
    num_simulations: NDArray[np.int32]  # [B]
    temperature: NDArray[np.float32]  # [B] of the choice of the action; 0 takes the best
    exploration: NDArray[np.float32]  # [B] scale of root noise: 1 in self-play, 0 in evaluation


class PolicyOutput(NamedTuple):
    """What a search answers."""

    action: NDArray[np.int32]  # [B]
    action_weights: NDArray[np.float32]  # [B, A] the policy to learn; sums to 1
    value: NDArray[np.float32]  # [B] of the root, for the player to move
    visit_counts: NDArray[np.int32] | None = None  # [B, A]
    q_values: NDArray[np.float32] | None = None  # [B, A] of root actions; 0 where not visited
    prior: NDArray[np.float32] | None = None  # [B, A]
    principal_variation: NDArray[np.int32] | None = None  # [B, D] the line it expects; -1 past end
    version: int = 0  # of the network that answered


class Policy(Protocol):
    """Anything that chooses moves for B games: a search in process, or one on a network server."""

    def __call__(self, inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        """`details`: whether the optional outputs are wanted."""
