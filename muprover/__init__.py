"""MuZero whose components are processes: environment, replay, network, trainer, agent, evaluator."""
