"""MuZero in processes: environment, replay, network, trainer, agent, evaluator."""
