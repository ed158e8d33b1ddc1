"""Settings with which tic-tac-toe trains within seconds, if not well."""

SMALL = [
    "search.num_simulations=4",
    "search.max_num_simulations=4",
    "evaluation.num_simulations=4",
    "network.hidden_size=8",
    "network.layer_size=16",
    "training.batch_size=16",
    "training.num_unroll_steps=1",
    "replay.min_size_to_sample=50",
    "self_play.games_per_agent=8",
]
