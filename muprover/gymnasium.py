"""Games from Gymnasium: `GymnasiumEnvironment`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from muprover.config import SettingsError
from muprover.environment import Environment, TimeStep


def _gymnasium() -> Any:
    """The package, which only those need who play its games: agents do without it."""
    try:
        import gymnasium
    except ImportError:
        raise SettingsError(
            "this game needs Gymnasium; install it: pip install 'muprover[gymnasium]'"
        ) from None
    return gymnasium


class GymnasiumEnvironment(Environment):
    """One player in a Gymnasium environment with discrete actions, all of them always legal.

    `scale`, if given, divides observations. Frame-skip and sticky actions are what the Gymnasium
    environment does; nothing is added here.
    """

    def __init__(self, env_id: str, scale: ArrayLike | None = None, **options: Any) -> None:
        gymnasium = _gymnasium()
        self._env = gymnasium.make(env_id, **options)
        self._scale = None if scale is None else np.asarray(scale, np.float32)
        space = self._env.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise TypeError(f"{env_id} has actions {space}; only Discrete ones can be searched")
        self._first_action = int(space.start)
        self._all_legal = np.ones(int(space.n), np.bool_)
        self._all_legal.setflags(write=False)  # every step hands it out

    def reset(self, seed: int | None = None) -> TimeStep:
        observation, _ = self._env.reset(seed=seed)
        return self._time_step(observation, 0.0, False, False)

    def step(self, action: int) -> TimeStep:
        observation, reward, terminated, truncated, _ = self._env.step(self._first_action + action)
        # a last step within the limit on time is an end by the rules, and bootstraps from nothing
        return self._time_step(observation, float(reward), terminated, truncated and not terminated)

    def close(self) -> None:
        self._env.close()

    def render(self) -> str:
        picture = self._env.render() if self._env.render_mode == "ansi" else None
        return picture if isinstance(picture, str) else ""

    def _time_step(
        self, observation: Any, reward: float, terminated: bool, truncated: bool
    ) -> TimeStep:
        observation = np.asarray(observation)
        if self._scale is not None:
            observation = (observation / self._scale).astype(np.float32)
        over = terminated or truncated
        legal_actions = np.zeros_like(self._all_legal) if over else self._all_legal
        return TimeStep(observation, reward, 0, legal_actions, terminated, truncated)
