"""How past frames and actions are stacked: golden stacks at the start of a game and after."""

from __future__ import annotations

import numpy as np
import pytest

from muprover.config import GameConfig
from muprover.history import FrameStack, GameHistory, stack_frames


def game(**facts: object) -> GameConfig:
    given = {
        "name": "tested",
        "observation_shape": (1,),
        "num_actions": 3,
        "max_moves": 9,
        "num_stacked_frames": 3,
        "stack_actions": True,
    }
    return GameConfig(**given | facts)


def test_the_newest_frame_comes_first_then_actions_one_hot() -> None:
    """Frames 10, 20, 30 and actions 2, 0 between them, in row 1 of two games."""
    stack = FrameStack(2, game())
    row = np.array([1])
    stack.reset(row, np.float32([[10]]))
    assert stack.observation(row).tolist() == [[10, 0, 0, 0, 0, 0, 0, 0, 0]]
    stack.step(row, np.array([2]), np.float32([[20]]))
    assert stack.observation(row).tolist() == [[20, 10, 0, 0, 0, 1, 0, 0, 0]]
    stack.step(row, np.array([0]), np.float32([[30]]))
    assert stack.observation(row).tolist() == [[30, 20, 10, 1, 0, 0, 0, 0, 1]]
    stack.step(row, np.array([1]), np.float32([[40]]))
    assert stack.observation(row).tolist() == [[40, 30, 20, 0, 1, 0, 1, 0, 0]]
    assert not stack.observation(np.array([0])).any()


def test_action_zero_is_seen_and_no_action_is_not() -> None:
    stack = FrameStack(1, game())
    stack.reset(np.array([0]), np.float32([[10]]))
    begun = stack.observation(np.array([0]))
    stack.step(np.array([0]), np.array([0]), np.float32([[0]]))
    assert begun[0, 3:].tolist() == [0] * 6
    assert stack.observation(np.array([0]))[0, 3:].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_reset_forgets_the_game_before_in_its_rows_only() -> None:
    stack = FrameStack(2, game())
    rows = np.arange(2)
    stack.reset(rows, np.float32([[10], [11]]))
    stack.step(rows, np.array([1, 1]), np.float32([[20], [21]]))
    stack.reset(np.array([0]), np.float32([[50]]))
    assert stack.observation(rows).tolist() == [
        [50, 0, 0, 0, 0, 0, 0, 0, 0],
        [21, 11, 0, 0, 1, 0, 0, 0, 0],
    ]


def test_on_a_board_actions_are_constant_planes() -> None:
    facts = game(observation_shape=(2, 2, 1), num_stacked_frames=2)
    stack = FrameStack(1, facts)
    row = np.array([0])
    board = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    stack.reset(row, board)
    stack.step(row, np.array([1]), board + 10)
    seen = stack.observation(row)
    assert seen.shape == (1, *facts.network_observation_shape) == (1, 2, 2, 5)
    assert seen[0, :, :, 0].tolist() == [[10, 11], [12, 13]]
    assert seen[0, :, :, 1].tolist() == [[0, 1], [2, 3]]
    assert [seen[0, :, :, 2 + action].tolist() for action in range(3)] == [
        [[0, 0], [0, 0]],
        [[1, 1], [1, 1]],
        [[0, 0], [0, 0]],
    ]


def test_bytes_stay_bytes_and_a_one_is_what_the_network_divides_to_one() -> None:
    facts = game(observation_dtype="uint8", num_stacked_frames=2)
    frames = np.array([[7], [200]], np.uint8)
    seen = stack_frames(frames, np.array([2]), facts)
    assert seen.dtype == np.uint8
    assert seen.tolist() == [200, 7, 0, 0, 255]


@pytest.mark.parametrize("stack_actions", [True, False])
def test_one_frame_is_seen_as_it_is(stack_actions: bool) -> None:
    facts = game(num_stacked_frames=1, stack_actions=stack_actions)
    stack = FrameStack(2, facts)
    stack.reset(np.arange(2), np.float32([[1], [2]]))
    stack.step(np.arange(2), np.array([0, 1]), np.float32([[3], [4]]))
    assert stack.observation(np.arange(2)).tolist() == [[3], [4]]


@pytest.mark.parametrize("shape", [(5,), (4, 3, 2)])
def test_a_batch_of_stacks_equals_its_singles(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    facts = game(observation_shape=shape)
    frames = rng.random((2, 6, 3, *shape)).astype(np.float32)
    actions = rng.integers(-1, 3, (2, 6, 2))
    together = stack_frames(frames, actions, facts)
    assert together.shape == (2, 6, *facts.network_observation_shape)
    for i, j in np.ndindex(2, 6):
        np.testing.assert_array_equal(
            together[i, j], stack_frames(frames[i, j], actions[i, j], facts)
        )


def test_what_was_seen_does_not_change_with_the_game() -> None:
    stack = FrameStack(1, game())
    row = np.array([0])
    frame = np.float32([[10]])
    stack.reset(row, frame)
    seen = stack.observation(row)
    frame[:] = 99
    stack.step(row, np.array([1]), np.float32([[20]]))
    assert seen.tolist() == [[10, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert stack.observation(row)[0, :2].tolist() == [20, 10]


def test_a_history_knows_its_key_and_length() -> None:
    history = GameHistory(
        game_id=2**64 - 1,
        segment=0,
        first=0,
        size=2,
        observation=np.zeros((2, 1), np.float32),
        action=np.int32([0, 1]),
        reward=np.float32([0, 1]),
        to_play=np.int32([0, 1]),
        legal_actions=np.ones((2, 2), np.bool_),
        action_weights=np.full((2, 2), 0.5, np.float32),
        root_value=np.zeros(2, np.float32),
        exploratory=np.zeros(2, np.bool_),
        final_value=0.0,
        terminated=True,
    )
    assert (len(history), history.key) == (2, (2**64 - 1, 0))
    with pytest.raises(AttributeError):
        history.final_value = 1.0  # type: ignore[misc]
