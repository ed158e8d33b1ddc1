"""CartPole: Gymnasium's CartPole-v1, a pole to be balanced for 500 steps."""

from muprover.config import (
    Config,
    EvaluationConfig,
    GameConfig,
    GoalConfig,
    MLPConfig,
    ReplayConfig,
    SearchConfig,
    SelfPlayConfig,
    SupportConfig,
    TrainingConfig,
)
from muprover.environment import Environment
from muprover.gymnasium import GymnasiumEnvironment

SCALE = (2.4, 2.0, 0.21, 2.0)  # of position (m), speed, angle (rad) and angular speed


def make_environment() -> Environment:
    return GymnasiumEnvironment("CartPole-v1", scale=SCALE)


def make_config() -> Config:
    return Config(
        game=GameConfig(name="cartpole", observation_shape=(4,), num_actions=2, max_moves=500),
        search=SearchConfig(num_simulations=16, max_num_simulations=50),
        network=MLPConfig(
            hidden_size=64,
            value_support=SupportConfig(limit=50, size=10, scaled=True),
            reward_support=SupportConfig(limit=1, size=1),
        ),
        training=TrainingConfig(
            batch_size=128,
            td_steps=50,
            discount=0.98,
            learning_rate=3e-3,
            ema_decay=0.998,
            export_interval=500,
        ),
        replay=ReplayConfig(
            max_size=100_000, min_size_to_sample=3_000, samples_per_insert=4.0, segment_length=50
        ),
        self_play=SelfPlayConfig(games_per_agent=128),
        evaluation=EvaluationConfig(
            watch_share=0.5, goal=GoalConfig(metric="mean_return", at_least=475)
        ),
    )
