"""A real server for fuzzing: `serve.py NAME FOLDER`; prints its ports, and serves until SIGTERM."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from muprover.services.server import Server, run_until_signal


def tell(port: int, rest_port: int = 0) -> None:
    print(json.dumps([port, rest_port]), flush=True)


def environment(folder: Path) -> None:
    from muprover.game import load_game
    from muprover.services.environment import serving

    async def main(stop: asyncio.Event) -> None:
        async with serving(load_game("tictactoe"), 0, host="localhost") as server:
            tell(server.port)
            await stop.wait()

    run_until_signal(main)


def replay(folder: Path) -> None:
    from fuzz.replay import SERVICE, config
    from muprover.services.replay import serve_until

    async def main(stop: asyncio.Event) -> None:
        server = Server([SERVICE.full_name], 0, "localhost")
        await serve_until(stop, server, config(), folder / "store", 0, tell)

    run_until_signal(main)


def network(folder: Path) -> None:
    from network_servers import MODEL, tiny_exporter

    from fuzz.network import SIZES
    from muprover.model.serving.flags import Batching, ServerOptions
    from muprover.model.serving.server import NetworkServer
    from muprover.serving_config import ModelSettings

    models = folder / "models" / MODEL
    tiny_exporter(models, warmup_batch_sizes=SIZES).export(1)
    options = ServerOptions(
        [ModelSettings(MODEL, str(models))],
        port=0,
        rest_port=-1,
        poll_seconds=0.05,
        host="localhost",
        batching=Batching(max_batch_size=max(SIZES), allowed_sizes=SIZES),
    )

    async def main(stop: asyncio.Event) -> None:
        server = NetworkServer(options)

        async def tell_ports(started: Any) -> None:
            while not started.manager.is_ready:
                await asyncio.sleep(0.05)
            tell(started.port, started.rest_port)

        tasks: list[Any] = []
        await server.run(stop, lambda s: tasks.append(asyncio.create_task(tell_ports(s))))

    run_until_signal(main)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    {"environment": environment, "replay": replay, "network": network}[sys.argv[1]](
        Path(sys.argv[2])
    )
