"""A mirrored strategy on two virtual devices makes the same update as one device."""

import json
import subprocess
import sys

import numpy as np

SCRIPT = """
import json, sys
import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from muprover.game import load_game
from muprover.model.trainer import mirrored_strategy
from muprover.model.training import Training, example_batch

game = load_game("tictactoe", overrides=[
    "network.hidden_size=8", "network.layer_size=8", "training.batch_size=8",
    "training.optimizer=sgd", "training.max_gradient_norm=0.1",  # Adam would hide a wrong scale
    "training.ema_decay=0.9", "training.num_unroll_steps=1",
])
batches = [example_batch(game, 8, np.random.default_rng(i)) for i in range(2)]
answer = []
for devices in (1, 2):
    training = Training(game, 0, mirrored_strategy(devices))
    losses = [float(training.update(batch).total) for batch in batches]
    served = np.concatenate([w.numpy().ravel() for w in training.served_weights])
    weights = np.concatenate([w.numpy().ravel() for w in training.network.weights])
    answer.append([losses, weights.tolist(), served.tolist(), training.step])
print(json.dumps(answer))
"""


def test_two_devices_make_the_update_of_one():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    one, two = json.loads(result.stdout.splitlines()[-1])
    assert one[3] == two[3] == 2
    for mine, theirs in zip(one[:3], two[:3], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
