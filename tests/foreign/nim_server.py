"""Nim behind the environment protocol, with nothing but grpcio and protobuf.

Made from the protos alone: python -m grpc_tools.protoc --python_out=. --grpc_python_out=.
-Iprotos protos/muprover/v1/{environment,tensor}.proto

A heap has 5 to 20 stones; action `a` takes a + 1 of them; who takes the last one wins.
"""

import struct
from concurrent.futures import ThreadPoolExecutor

import grpc

from muprover.v1.environment_pb2 import DescribeResponse, PlayResponse
from muprover.v1.environment_pb2_grpc import (
    EnvironmentServiceServicer,
    add_EnvironmentServiceServicer_to_server,
)
from muprover.v1.tensor_pb2 import BOOL, FLOAT32, INT32, Tensor

SIZE, ACTIONS = 21, 3
CONTRACT = {
    "game.observation_shape": "[21]",
    "game.observation_dtype": "float32",
    "game.num_actions": "3",
    "game.num_players": "2",
}


class Nim(EnvironmentServiceServicer):
    def Describe(self, request, context):
        return DescribeResponse(contract=CONTRACT)

    def Play(self, requests, context):
        games = {}  # row: (stones, player, reward)
        for request in requests:
            try:
                yield self.answer(games, request)
            except ValueError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def answer(self, games, request):
        rows, resets = list(request.rows), request.HasField("resets")
        numbers = request.resets.seeds if resets else request.moves.actions
        if len(set(rows)) < len(rows) or len(rows) != len(numbers) or min(rows, default=-1) < 0:
            raise ValueError(f"rows {rows} must differ, be 0 or more, and go with {numbers}")
        for row, action in zip(rows, numbers, strict=True):
            if not resets and not 0 <= action < min(ACTIONS, games.get(row, [0])[0]):
                raise ValueError(f"action {action} is not allowed in row {row}")
        for row, number in zip(rows, numbers, strict=True):
            games[row] = begin(number) if resets else move(games[row], number)
        return time_steps([games[row] for row in rows])


def begin(seed):
    return 5 + seed % 16, 0, 0.0


def move(game, action):
    stones, player, _ = game
    left = stones - action - 1
    return left, 1 - player, float(left == 0)


def time_steps(games):
    n = len(games)
    observation = [float(left == i) for left, _, _ in games for i in range(SIZE)]
    legal_actions = [action < left for left, _, _ in games for action in range(ACTIONS)]
    return PlayResponse(
        observation=tensor(FLOAT32, "f", (n, SIZE), observation),
        reward=tensor(FLOAT32, "f", (n,), [reward for _, _, reward in games]),
        to_play=tensor(INT32, "i", (n,), [player for _, player, _ in games]),
        legal_actions=tensor(BOOL, "?", (n, ACTIONS), legal_actions),
        terminated=tensor(BOOL, "?", (n,), [left == 0 for left, _, _ in games]),
        truncated=tensor(BOOL, "?", (n,), [False] * n),
    )


def tensor(dtype, code, shape, values):
    return Tensor(dtype=dtype, shape=shape, data=struct.pack(f"<{len(values)}{code}", *values))


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(16))
    add_EnvironmentServiceServicer_to_server(Nim(), server)
    print(server.add_insecure_port("localhost:0"), flush=True)
    server.start()
    server.wait_for_termination()
