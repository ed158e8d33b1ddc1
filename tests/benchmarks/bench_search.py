"""The compiled search against `mctx`, and against its network evaluations alone, on one core.

    python tests/benchmarks/bench_search.py --quick
    python tests/benchmarks/bench_search.py --networks resnet --batches 8,32 --json search.json

Each row of the table is one setting: simulations/s of both sides and of the limit (as many
recurrent inferences in a bare compiled loop), ratios of medians, the games in which both sides
counted the same visits (noise off), and what compiling took. Where visits differ, it exits with 1.

A second table has the time of a simulation in long searches against that in short ones.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from typing import Any

from timing import first_call, medians_in_turn, report, use_one_core

use_one_core()

import jax  # noqa: E402
import mctx  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from reference_networks import NUM_ACTIONS, jax_network, observations, tensorflow_network  # noqa: E402

from muprover.config import SearchConfig  # noqa: E402
from muprover.model.runtime import flat, tune  # noqa: E402
from muprover.model.search import search  # noqa: E402


def muprover_search(kind: str, variant: str, batch: int, simulations: int) -> Callable[..., Any]:
    """A function of (seed, exploration) that answers (action, action_weights, visit_counts)."""
    network = tensorflow_network(kind)
    config = SearchConfig(
        variant=variant, num_simulations=simulations, max_num_simulations=simulations
    )
    observation = tf.constant(observations(kind, batch))
    legal = tf.ones([batch, NUM_ACTIONS], tf.bool)
    budget, temperature = tf.fill([batch], simulations), tf.ones([batch])

    @compiled
    def run(seed: Any, exploration: Any) -> Any:
        return search(
            network.initial,
            network.recurrent,
            observation,
            legal,
            seed,
            budget,
            temperature,
            exploration,
            config=config,
            discount=-1.0,
        )

    rng = np.random.RandomState(0)

    def call(exploration: float = 1.0) -> Any:
        seed = rng.randint(-(2**31), 2**31 - 1, (batch, 2)).astype(np.int32)
        out = run(seed, np.full(batch, exploration, np.float32))
        return [out[name].numpy() for name in ("action", "action_weights", "visit_counts")]

    return call


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays, compiled at its first call, and called as the network server does."""
    call: Callable[..., Any] | None = None

    def run(*arrays: np.ndarray) -> Any:
        nonlocal call
        tensors = [tf.convert_to_tensor(array) for array in arrays]
        if call is None:
            traced = tf.function(function, jit_compile=True).get_concrete_function(*tensors)
            call = flat(traced)
        return call(*tensors)

    return run


def mctx_search(kind: str, variant: str, batch: int, simulations: int) -> Callable[..., Any]:
    network = jax_network(kind)
    observation = observations(kind, batch)

    def recurrent(_: Any, __: Any, action: Any, hidden: Any) -> Any:
        hidden, reward, value, logits = network.recurrent(hidden, action)
        discount = jax.numpy.full(batch, -1.0)
        step = mctx.RecurrentFnOutput(
            reward=reward, discount=discount, prior_logits=logits, value=value
        )
        return step, hidden

    @jax.jit
    def run(key: Any, exploration: Any) -> Any:
        hidden, _, value, logits = network.initial(observation)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=hidden)
        if variant == "muzero":
            fraction = 0.25 * exploration
            out = mctx.muzero_policy(
                None, key, root, recurrent, simulations, dirichlet_fraction=fraction
            )
        else:
            out = mctx.gumbel_muzero_policy(
                None, key, root, recurrent, simulations, gumbel_scale=exploration
            )
        return out.action, out.action_weights, out.search_tree.summary().visit_counts

    keys = itertools.count()

    def call(exploration: float = 1.0) -> Any:
        out = run(jax.random.PRNGKey(next(keys)), jax.numpy.float32(exploration))
        return [np.asarray(array) for array in out]

    return call


def bare_network(kind: str, batch: int, simulations: int) -> Callable[..., Any]:
    """As many recurrent inferences, each on what the last one answered, and no tree."""
    network = tensorflow_network(kind)

    @compiled
    def run(observation: Any) -> Any:
        def body(i: Any, hidden: Any, total: Any, action: Any) -> Any:
            hidden, reward, value, logits = network.recurrent(hidden, action)
            total = total + reward + value + tf.reduce_sum(logits, -1)
            return i + 1, hidden, total, (action + i) % NUM_ACTIONS

        hidden, _, value, _ = network.initial(observation)
        start = (0, hidden, value, tf.zeros([batch], tf.int32))
        _, hidden, total, _ = tf.while_loop(lambda i, *_: i < simulations, body, start)
        return {"hidden_state": hidden, "total": total}

    observation = observations(kind, batch)
    return lambda: [tensor.numpy() for tensor in run(observation).values()]


def measure(
    kind: str,
    variant: str,
    batch: int,
    simulations: int,
    seconds: float,
    with_mctx: bool,
    different: list[str],
) -> dict[str, Any]:
    """A row of the table. `different` takes up settings in which visit counts were not equal."""
    ours = muprover_search(kind, variant, batch, simulations)
    sides: dict[str, Callable[[], Any]] = {
        "muprover": ours,
        "network": bare_network(kind, batch, simulations),
    }
    compiling = {name: first_call(side) for name, side in sides.items()}
    equal = "-"
    if with_mctx:
        sides["mctx"] = theirs = mctx_search(kind, variant, batch, simulations)
        compiling["mctx"] = first_call(theirs)
        same = (ours(0.0)[2] == theirs(0.0)[2]).all(-1)
        equal = f"{same.sum()}/{batch}"
        if not same.all():
            different.append(f"{kind}, {variant}, B = {batch}, S = {simulations}: {equal}")
    medians = medians_in_turn(sides, seconds)
    rate = {name: batch * simulations / median for name, median in medians.items()}
    row: dict[str, Any] = {
        "network": kind,
        "variant": variant,
        "B": batch,
        "S": simulations,
        "muprover/s": rate["muprover"],
        "ms": 1e3 * medians["muprover"],
        "network/s": rate["network"],
        "share of limit": rate["muprover"] / rate["network"],
    }
    if with_mctx:
        row["mctx/s"] = rate["mctx"]
        row["times mctx"] = rate["muprover"] / rate["mctx"]
        trees = {n: medians[n] - medians["network"] for n in ("muprover", "mctx")}
        row["tree cost to mctx's"] = trees["muprover"] / max(trees["mctx"], 1e-9)
        row["equal visits"] = equal
        row["mctx compiles s"] = compiling["mctx"]
    return row | {"compiles s": compiling["muprover"]}


def measure_scaling(
    kind: str, variant: str, batch: int, simulations: tuple[int, int], seconds: float
) -> dict[str, Any]:
    """Of a simulation, in long searches against short ones."""
    sides = {str(s): muprover_search(kind, variant, batch, s) for s in simulations}
    for side in sides.values():
        side()
    medians = medians_in_turn(sides, seconds)
    per_simulation = {f"us at S = {s}": 1e6 * medians[str(s)] / s for s in simulations}
    few, many = per_simulation.values()
    row = {"network": kind, "variant": variant, "B": batch}
    return row | per_simulation | {"ratio": many / few}


def main() -> int:
    options = parse()
    tune(intra_op=1, inter_op=1)  # as the network server does
    settings = itertools.product(
        options.networks, options.variants, options.batches, options.simulations
    )
    different: list[str] = []
    rows = [
        measure(*setting, options.seconds, not options.no_mctx, different) for setting in settings
    ]
    versions = {"tensorflow": tf.__version__, "jax": jax.__version__, "mctx": mctx.__version__}
    tables = {"search": rows}
    if options.scaling:
        tables["search, time of a simulation"] = [
            measure_scaling(kind, variant, 32, (50, options.scaling), options.seconds)
            for kind in options.networks[-1:]
            for variant in options.variants
        ]
    report(tables, options.json, **versions)
    for setting in different:
        print(f"visit counts differ from mctx's: {setting}", file=sys.stderr)
    return 1 if different else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--networks", type=names, default=["mlp", "resnet"])
    parser.add_argument("--variants", type=names, default=["muzero", "gumbel_muzero"])
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 128, 512])
    parser.add_argument("--simulations", type=numbers, default=[25, 50])
    parser.add_argument(
        "--scaling",
        type=int,
        default=800,
        metavar="S",
        help="simulations of the last network's long searches (default: %(default)s; 0: none)",
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="of measuring, each side")
    parser.add_argument("--no-mctx", action="store_true", help="only against the limit")
    parser.add_argument("--quick", action="store_true", help="the MLP at B = 32, S = 25, briefly")
    parser.add_argument("--json", help="file to write")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.batches, options.simulations = ["mlp"], [32], [25]
        options.seconds, options.scaling = 0.5, 0
    return options


if __name__ == "__main__":
    sys.exit(main())
