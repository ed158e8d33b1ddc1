"""Tic-tac-toe with positions as numbers, and what each is worth: no code shared with the game."""

from __future__ import annotations

from functools import cache

LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]
OVER = -1


def board(position: int) -> list[int]:
    return [position // 3**square % 3 for square in range(9)]


def number(squares: list[int]) -> int:
    return sum(mark * 3**square for square, mark in enumerate(squares))


def move(position: int, action: int) -> tuple[int, float]:
    """Marks are 1 and 2, 1 begins. What is over, or not allowed, leads to OVER with reward 0."""
    squares = board(position) if position != OVER else [1] * 9
    if squares[action]:
        return OVER, 0.0
    squares[action] = 1 if squares.count(1) == squares.count(2) else 2
    won = any(
        squares[a] == squares[b] == squares[c] == squares[action]
        for a, b, c in LINES
        if action in (a, b, c)
    )
    if won or 0 not in squares:
        return OVER, float(won)
    return number(squares), 0.0


@cache
def solve(position: int) -> float:
    """The outcome for the player to move."""
    if position == OVER:
        return 0.0
    return max(q for q in outcomes(position) if q is not None)


def outcomes(position: int) -> list[float | None]:
    """Of each move, for who makes it; None if it is not allowed."""
    free = [mark == 0 for mark in board(position)]
    followed = [move(position, action) for action in range(9)]
    return [reward - solve(p) if f else None for f, (p, reward) in zip(free, followed, strict=True)]


def perfect(position: int) -> tuple[float, list[float]]:
    """Perfect values, and no idea which moves are good: the search has to find out."""
    if position == OVER:
        return 0.0, [0.0] * 9
    return solve(position), [
        0.01 * a if mark == 0 else -9.0 for a, mark in enumerate(board(position))
    ]


def tic_tac_toe(text: str) -> int:
    return number([".xo".index(mark) for mark in text])
