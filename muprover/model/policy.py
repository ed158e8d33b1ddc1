"""Searches in this process: over a network that is being trained, or over an exported version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from muprover.config import Config, SettingsError
from muprover.model.networks import MuZeroNetwork
from muprover.model.search import search
from muprover.policy import Policy, PolicyOutput, SearchInputs

DETAILS = ("visit_counts", "q_values", "prior", "principal_variation")


class CompiledPolicy:
    """The compiled search over a network's weights as they are at each call.

    Each batch size is compiled when it first comes, which takes seconds.
    """

    def __init__(self, network: MuZeroNetwork, config: Config) -> None:
        self._network = network

        def run(weights: Sequence[Any], inputs: SearchInputs) -> dict[str, Any]:
            return search(
                lambda observation: network.initial_inference(observation, weights),
                lambda hidden, action: network.recurrent_inference(hidden, action, weights),
                *inputs,
                config=config.search,
                discount=config.signed_discount,
            )

        self._run = tf.function(run, jit_compile=True, autograph=False)

    def __call__(self, inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        weights = [weight.read_value() for weight in self._network.weights]
        outputs = self._run(weights, SearchInputs(*map(tf.convert_to_tensor, inputs)))
        return _to_output(outputs, details)


def load_policy(models: Path) -> Policy:
    """The search of the newest version below the folder `models`, compiled as batches come."""
    versions = sorted(int(path.name) for path in models.glob("*") if path.name.isdigit())
    if not versions:
        raise SettingsError(f"there is no version of a network in {models} (yet)")
    model = tf.saved_model.load(str(models / str(versions[-1])))
    signature = model.signatures["search_xla"]

    def policy(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        # the signature keeps the loaded model's variables alive only together with the model
        outputs = signature(**{k: tf.convert_to_tensor(v) for k, v in inputs._asdict().items()})
        return _to_output(outputs, details)._replace(version=versions[-1])

    policy.model = model  # type: ignore[attr-defined]
    return policy


def _to_output(outputs: dict[str, Any], details: bool) -> PolicyOutput:
    wanted = ("action", "action_weights", "value", *(DETAILS if details else ()))
    return PolicyOutput(**{name: outputs[name].numpy() for name in wanted})
