"""Nim, whose rules are on a server in another language; these are its numbers."""

from muprover.config import Config, GameConfig, MLPConfig, SearchConfig, TrainingConfig


def make_config() -> Config:
    return Config(
        game=GameConfig(
            name="nim", observation_shape=(21,), num_actions=3, num_players=2, max_moves=20
        ),
        search=SearchConfig(num_simulations=8, max_num_simulations=8),
        network=MLPConfig(hidden_size=16, layer_size=16),
        training=TrainingConfig(batch_size=32, td_steps=20),
    )
