"""What each operation of a compiled search takes, and those of its network evaluations alone.

    python tests/benchmarks/profile_search.py --network resnet --batch 128 --variant muzero

Times are medians by TensorFlow's profiler, which itself takes a little of them; names are XLA's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from timing import use_one_core

use_one_core()

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from bench_search import bare_network, muprover_search  # noqa: E402
from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace  # noqa: E402

from muprover.model.runtime import tune  # noqa: E402

CALLS = 30
PRODUCTS = ("matmul", "dot")  # how the names of matrix products begin
AROUND = ("while", "thunk", "end:", "block", "cpuexec")  # what holds other operations


class Operation(NamedTuple):
    name: str
    times: float  # per simulation
    microseconds: float  # each

    @property
    def total(self) -> float:
        return self.times * self.microseconds


def main() -> None:
    args = parse()
    tune(intra_op=1, inter_op=1)
    kinds: dict[str, Callable[[], Any]] = {
        f"{args.variant}, {args.network}, B = {args.batch}, S = {args.simulations}": (
            muprover_search(args.network, args.variant, args.batch, args.simulations)
        ),
        "its network evaluations alone": bare_network(args.network, args.batch, args.simulations),
    }
    for title, call in kinds.items():
        operations = profile(call, args.simulations)
        products = sum(o.total for o in operations if o.name.lower().startswith(PRODUCTS))
        everything = sum(o.total for o in operations)
        print(f"\n{title}: {everything:.1f} us a simulation, {products:.1f} in matrix products")
        print(f"{'us':>8} {'times':>6} {'us each':>8}")
        for o in operations[: args.most]:
            print(f"{o.total:8.2f} {o.times:6.2f} {o.microseconds:8.2f}  {o.name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=["mlp", "resnet"], default="resnet")
    parser.add_argument("--variant", choices=["muzero", "gumbel_muzero"], default="gumbel_muzero")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--simulations", type=int, default=50)
    parser.add_argument("--most", type=int, default=30, help="operations to show")
    return parser.parse_args()


def profile(call: Callable[[], Any], simulations: int) -> list[Operation]:
    """The operations that most simulations run, those that take most first."""
    for _ in range(10):
        call()
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
        with tf.profiler.experimental.Profile(folder, options):
            for _ in range(CALLS):
                call()
        [path] = Path(folder).rglob("*.xplane.pb")
        space = XSpace.FromString(path.read_bytes())
    found: dict[str, list[float]] = defaultdict(list)
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                found[plane.event_metadata[event.metadata_id].name].append(event.duration_ps / 1e6)
    operations = [
        Operation(name, len(each) / CALLS / simulations, float(np.median(each)))
        for name, each in found.items()
        if not name.lower().startswith(AROUND)
    ]
    often = [o for o in operations if o.times > 0.5]
    return sorted(often, key=lambda o: -o.total)


if __name__ == "__main__":
    main()
