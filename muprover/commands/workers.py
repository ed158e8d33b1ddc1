"""The commands of what learns and plays: trainer, agent, evaluator."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import Any

from muprover.commands.options import (
    ENVIRONMENT_PORT,
    REPLAY_PORT,
    CommandBuilder,
    count,
    game_of,
    natural,
    port,
    positive,
    require_tensorflow,
    start_logging,
)
from muprover.model.compiled import keep_compiled


def add_trainer(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "trainer",
        trainer,
        "learn from the replay server's games, and export networks",
        "Learns from the replay server's games. A first version of the network is exported before "
        "any\ndata is there, so that self-play can begin. Started again with the same --logdir, it "
        "goes on.",
        usage="muprover trainer --game G --saved-models D --logdir D [options]",
    )
    command.game().group("training").partner("replay-buffer", REPLAY_PORT)
    add = command.add
    add(
        "--min-games",
        type=natural,
        default=1,
        metavar="N",
        help="that must be stored before training begins (default: %(default)s)",
    )
    add(
        "--saved-models",
        type=Path,
        required=True,
        metavar="D",
        help="folder for versions of the network, where the network server looks for them",
    )
    add(
        "--logdir",
        type=Path,
        required=True,
        metavar="D",
        help="folder for checkpoints and TensorBoard's curves",
    )
    add(
        "--keep-exports",
        type=count,
        default=5,
        metavar="N",
        help="newest versions that stay on disk (default: %(default)s)",
    )
    add(
        "--model-port",
        type=port,
        metavar="P",
        help="from which network servers elsewhere pull versions (default: none; 0: any free one)",
    )
    add(
        "--num-devices",
        type=count,
        default=1,
        metavar="N",
        help="GPUs that share each batch (default: %(default)s)",
    )
    add("--threads", type=count, metavar="N", help="of TensorFlow (default: as many as cores)")
    command.seed(of="of weights, symmetries and batches").operation(health=True, host=True)
    command.examples(
        "muprover trainer --game tictactoe --replay-buffer localhost:50001 \\",
        "    --min-games 100 --saved-models models --logdir logs",
    )


def trainer(args: argparse.Namespace) -> int:
    require_tensorflow("trainer")
    start_logging("trainer", args)
    keep_compiled()
    from muprover.model.trainer import train

    train(
        game_of(args),
        replay_buffer=args.replay_buffer,
        min_games=args.min_games,
        saved_models=args.saved_models,
        logdir=args.logdir,
        seed=args.seed,
        metrics_port=args.metrics_port,
        metrics_host=args.metrics_host,
        health_port=args.health_port,
        model_port=args.model_port,
        num_devices=args.num_devices,
        threads=args.threads,
        keep_exports=args.keep_exports,
    )
    return 0


def add_agent(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "agent",
        agent,
        "play many games at once and store them",
        "Plays games: rules from the environment server, moves from the network server's search;\n"
        "what is played goes to the replay server.",
        usage="muprover agent --game G [options]",
    )
    command.game().group("self-play").partner("environment", ENVIRONMENT_PORT)
    command.partner("replay-buffer", REPLAY_PORT).network_partner()
    add = command.add
    add(
        "--num-games",
        type=count,
        metavar="N",
        help="played at once (default: self_play.games_per_agent)",
    )
    add(
        "--groups",
        type=count,
        default=2,
        metavar="N",
        help="that these are played in: one moves while the others search (default: %(default)s)",
    )
    add(
        "--environment-timeout",
        type=positive,
        default=300.0,
        metavar="S",
        help="take an environment server for lost that answers nothing for so many seconds "
        "(default: %(default)g)",
    )
    add("--agent-name", metavar="NAME", help="written into its games (default: host and process)")
    add("--max-games-total", type=count, metavar="N", help="end after so many (default: never)")
    add(
        "--grace",
        type=positive,
        default=60.0,
        metavar="S",
        help="seconds in which it has to end once told to; in all but the last ten it waits for "
        "searches, and for the replay server to take what was played (default: %(default)g)",
    )
    command.seed(default=None).operation(health=True, host=True)
    command.examples(
        "muprover agent --game tictactoe --environment localhost:50000 \\",
        "    --replay-buffer localhost:50001 --network localhost:50002 --num-games 64",
    )


def agent(args: argparse.Namespace) -> int:
    start_logging("agent", args)
    from muprover.agent import run

    return run(
        game_of(args),
        environment=args.environment,
        replay_buffer=args.replay_buffer,
        network=args.network,
        num_games=args.num_games,
        groups=args.groups,
        environment_timeout=args.environment_timeout,
        agent_name=args.agent_name,
        metrics_port=args.metrics_port,
        metrics_host=args.metrics_host,
        health_port=args.health_port,
        seed=secrets.randbits(32) if args.seed is None else args.seed,  # never a game twice
        model_name=args.model_name,
        search_signature=args.search_signature,
        grace=args.grace,
        max_games_total=args.max_games_total,
    )


def add_evaluate(commands: Any) -> None:
    command = CommandBuilder(
        commands,
        "evaluate",
        evaluate,
        "measure how well the served network plays",
        "Lets the agent play as it is served, without noise: matches by seat, mean returns and, "
        "where\nthe game has them, exact answers (every line of play, known positions).",
        usage="muprover evaluate --game G [--network HOST:PORT] [options]",
    )
    command.game().group("evaluation").partner(
        "environment",
        ENVIRONMENT_PORT,
        "; it is not asked for games of two players whose rules are at hand: these are played here",
    )
    command.network_partner()
    add = command.add
    add("--watch", action="store_true", help="evaluate each new version, until stopped")
    add("--json", action="store_true", help="answer in JSON")
    add("--output", type=Path, metavar="F", help="file to which each evaluation adds a JSON line")
    add(
        "--matches",
        action=argparse.BooleanOptionalAction,
        help="play against others too (default: yes, but no with --watch)",
    )
    command.seed().operation(health=True, host=True)
    command.examples(
        "muprover evaluate --game tictactoe --network localhost:50002",
        "muprover evaluate --game tictactoe --network localhost:50002 --watch --output e.jsonl",
        "muprover evaluate --game connect_four --network localhost:50002 \\",
        "    --set evaluation.num_episodes=400 --set evaluation.mcts_simulations=1000",
    )


def evaluate(args: argparse.Namespace) -> int:
    start_logging("evaluator", args)
    from muprover.evaluator import run

    return run(
        game_of(args),
        environment=args.environment,
        network=args.network,
        watch=args.watch,
        as_json=args.json,
        output=args.output,
        metrics_port=args.metrics_port,
        metrics_host=args.metrics_host,
        health_port=args.health_port,
        seed=args.seed,
        model_name=args.model_name,
        search_signature=args.search_signature,
        matches=args.matches,
    )
