"""How good an agent is: matches, exact oracles, and what a run's goal asks for.

`Evaluation` measures; `players`, `matches`, `oracles` and `mcts` are what it measures with.
"""

from muprover.evaluation.evaluate import Evaluation, EvaluationResult
from muprover.evaluation.players import AgentPlayer, EvaluationError, evaluation_inputs

__all__ = ["AgentPlayer", "Evaluation", "EvaluationError", "EvaluationResult", "evaluation_inputs"]
