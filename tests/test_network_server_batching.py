"""Batches: who shares one, how they are padded, which sizes are compiled, what is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from network_servers import until
from tensorflow.core.protobuf import meta_graph_pb2

from muprover.model.serving.batch_sizes import MAX_LEARNED, BatchSizes, Plan
from muprover.model.serving.batching import Batcher, BatchingOptions
from muprover.model.serving.errors import ServingError
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.versions import Function, LoadedVersion, Program


class Recorder:
    """A function that answers its input and the size of the batch; waits while it is held."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: list[threading.Thread] = []
        self.going = threading.Event()
        self.going.set()
        self.error: Exception | None = None

    def __call__(self, weights: Any, x: tf.Tensor, num_simulations: tf.Tensor) -> Any:
        self.sizes.append(len(x))
        self.threads.append(threading.current_thread())
        self.going.wait(10)
        if self.error:
            raise self.error
        return {"x": x, "size": tf.fill(tf.shape(x), len(x)), "most": num_simulations}


class Bench:
    """A batcher around a `Recorder`."""

    def __init__(
        self, allowed: tuple[int, ...] = (), compiled: tuple[int, ...] = (), **options: Any
    ):
        self.recorder = Recorder()
        definition = meta_graph_pb2.SignatureDef()
        for name, dtype in (("x", tf.float32), ("num_simulations", tf.int32)):
            definition.inputs[name].dtype = dtype.as_datatype_enum
            definition.inputs[name].tensor_shape.dim.add(size=-1)
        self.options = BatchingOptions(**{"max_rows": 8, "num_threads": 1} | options)
        self.sizes = BatchSizes(self.options.max_rows, allowed)
        for size in compiled:
            self.sizes.add(size)
        inputs = ("x", "num_simulations")
        self.function = Function("search", inputs, self.recorder, self.recorder, self.sizes)
        self.program = Program({"search": definition}, [self.function], {})
        self.version = LoadedVersion(1, self.program, (), 0.0)
        self.metrics = Metrics()
        self.batcher = Batcher(self.options, self.metrics)

    def ask(
        self,
        *rows: float,
        simulations: int = 3,
        deadline: float | None = None,
        helps: bool = False,
    ) -> Future[dict[str, Any]]:
        x = np.array(rows, np.float32)
        inputs = {"x": x, "num_simulations": np.full(len(rows), simulations, np.int32)}
        return self.batcher.submit(
            self.version, self.function, inputs, ("x", "size"), deadline, helps
        )

    def hold(self) -> Future[dict[str, Any]]:
        """Keeps the only thread busy with a batch until `recorder.going` is set."""
        self.recorder.going.clear()
        before = len(self.recorder.sizes)
        held = self.ask(0.0)
        until(lambda: len(self.recorder.sizes) > before)
        return held

    def count(self, name: str) -> float:
        return float(getattr(self.metrics, name).labels("search")._value.get())


@pytest.fixture
def make_bench() -> Iterator[Any]:
    benches: list[Bench] = []

    def make(*args: Any, **kwargs: Any) -> Bench:
        benches.append(Bench(*args, **kwargs))
        return benches[-1]

    yield make
    for bench in benches:
        bench.recorder.going.set()
        bench.batcher.close()


def answer(future: Future[dict[str, Any]]) -> tuple[list[float], int]:
    outputs = future.result(20)
    return outputs["x"].tolist(), int(outputs["size"][0])


def refusal(future: Future[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(ServingError) as caught:
        future.result(20)
    return caught.value.code, str(caught.value)


def test_nobody_waits_for_company(make_bench: Any) -> None:
    bench = make_bench(compiled=(1, 4))
    assert answer(bench.ask(1.0)) == ([1.0], 1)


def test_what_waits_while_the_thread_is_busy_runs_together(make_bench: Any) -> None:
    bench = make_bench(compiled=(1, 2, 4))
    held = bench.hold()
    waiting = [bench.ask(1.0, 2.0), bench.ask(3.0), bench.ask(4.0)]
    bench.recorder.going.set()
    assert [answer(f) for f in waiting] == [([1.0, 2.0], 4), ([3.0], 4), ([4.0], 4)]
    assert answer(held) == ([0.0], 1)


def test_who_brings_a_request_runs_it_if_one_more_batch_may_run(make_bench: Any) -> None:
    bench = make_bench(compiled=(1,))
    mine = bench.ask(1.0, helps=True)
    assert not bench.recorder.sizes  # nobody else was told of it
    bench.batcher.help()
    assert mine.done()
    assert bench.recorder.threads == [threading.current_thread()]


def test_who_brings_a_request_leaves_it_to_others_while_enough_batches_run(
    make_bench: Any,
) -> None:
    bench = make_bench(compiled=(1,))
    held = bench.hold()
    waiting = bench.ask(1.0, helps=True)
    bench.batcher.help()  # comes back at once
    assert not waiting.done()
    bench.recorder.going.set()
    assert answer(waiting) == ([1.0], 1)
    assert answer(held) == ([0.0], 1)
    assert threading.current_thread() not in bench.recorder.threads


def test_what_waited_for_a_helper_is_run_by_others(make_bench: Any) -> None:
    bench = make_bench(compiled=(1,))
    bench.recorder.going.clear()
    first = bench.ask(1.0, helps=True)
    helper = threading.Thread(target=bench.batcher.help)
    helper.start()
    until(lambda: bench.recorder.sizes == [1])
    second = bench.ask(2.0)
    time.sleep(0.05)
    assert bench.recorder.sizes == [1]  # one batch at a time
    bench.recorder.going.set()
    assert [answer(first), answer(second)] == [([1.0], 1), ([2.0], 1)]
    helper.join(10)


def test_what_a_helper_may_not_run_yet_is_looked_after(make_bench: Any) -> None:
    bench = make_bench(compiled=(1, 8), timeout=0.1)
    waiting = bench.ask(1.0, helps=True)
    bench.batcher.help()
    assert answer(waiting) == ([1.0], 1)


def test_a_batch_is_padded_to_the_next_size_and_the_padding_is_counted(make_bench: Any) -> None:
    bench = make_bench(allowed=(4, 8), compiled=(4, 8))
    assert answer(bench.ask(1.0, 2.0, 3.0)) == ([1.0, 2.0, 3.0], 4)
    until(lambda: bench.count("batches") == 1)
    assert (bench.count("batch_rows"), bench.count("padded_rows")) == (4, 1)


def test_padding_asks_for_one_simulation(make_bench: Any) -> None:
    bench = make_bench(compiled=(4,))
    x = np.ones(1, np.float32)
    inputs = {"x": x, "num_simulations": np.full(1, 50, np.int32)}
    asked = bench.batcher.submit(bench.version, bench.function, inputs, ("most",))
    assert asked.result(10)["most"].tolist() == [50]
    assert bench.recorder.sizes == [4]


def test_searches_of_different_length_do_not_share_a_batch(make_bench: Any) -> None:
    """A batch runs to the most of its rows: 25 simulations would take as long as 100."""
    bench = make_bench(compiled=(1, 2))
    bench.hold()
    short, long = bench.ask(1.0, simulations=25), bench.ask(2.0, simulations=100)
    bench.recorder.going.set()
    assert answer(short) == ([1.0], 1)
    assert answer(long) == ([2.0], 1)


def test_versions_do_not_share_a_batch(make_bench: Any) -> None:
    bench = make_bench(compiled=(1, 2))
    bench.hold()
    old = bench.ask(1.0)
    bench.version = LoadedVersion(2, bench.program, (), 0.0)
    new = bench.ask(2.0)
    bench.recorder.going.set()
    assert (answer(old), answer(new)) == (([1.0], 1), ([2.0], 1))


def test_a_size_that_is_not_compiled_is_compiled_aside(make_bench: Any) -> None:
    bench = make_bench(compiled=(2,))
    assert answer(bench.ask(*range(5)))[1] == 5
    assert bench.sizes.compiled == (2, 5)
    assert answer(bench.ask(1.0, 2.0, 3.0))[1] == 5, "no wait where a larger one is there"


def test_while_one_size_is_compiled_the_others_are_served(make_bench: Any) -> None:
    bench = make_bench(compiled=(2,))
    bench.recorder.going.clear()
    large = bench.ask(*range(5))
    until(lambda: bench.recorder.sizes == [5])  # being compiled
    small = bench.ask(1.0)
    until(lambda: bench.recorder.sizes == [5, 2])
    assert not large.done()
    bench.recorder.going.set()
    assert answer(small) == ([1.0], 2)
    assert answer(large)[1] == 5


def test_with_allowed_sizes_no_other_is_compiled(make_bench: Any) -> None:
    bench = make_bench(allowed=(2, 8))
    assert answer(bench.ask(*range(5)))[1] == 8
    assert bench.sizes.compiled == (8,)


def test_more_rows_than_a_batch_are_refused(make_bench: Any) -> None:
    bench = make_bench()
    with pytest.raises(ServingError, match="Task size 9 is larger than maximum input batch size 8"):
        bench.ask(*range(9))


def test_a_full_queue_refuses(make_bench: Any) -> None:
    bench = make_bench(compiled=(8,), max_batches=2)
    bench.hold()
    fits = [bench.ask(*range(8)), bench.ask(*range(8))]
    with pytest.raises(ServingError, match="was submitted is full") as caught:
        bench.ask(1.0)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    bench.recorder.going.set()
    assert [answer(future)[1] for future in fits] == [8, 8]


def test_what_is_past_its_deadline_is_not_run(make_bench: Any) -> None:
    bench = make_bench(compiled=(1, 2))
    bench.hold()
    late = bench.ask(1.0, deadline=time.monotonic() - 0.01)
    cancelled = bench.ask(2.0)
    cancelled.cancel()
    in_time = bench.ask(3.0, deadline=time.monotonic() + 60)
    bench.recorder.going.set()
    assert answer(in_time) == ([3.0], 1)
    assert refusal(late) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "Run() timeout exceeded while waiting in batching queue",
    )


def test_a_timeout_lets_a_batch_fill_up(make_bench: Any) -> None:
    bench = make_bench(allowed=(2, 4), compiled=(2, 4), max_rows=4, timeout=0.3)
    began = time.monotonic()
    first, second = bench.ask(1.0, 2.0), bench.ask(3.0, 4.0)
    assert (answer(first)[1], answer(second)[1]) == (4, 4)
    assert time.monotonic() - began < 0.3, "it was full"
    assert answer(bench.ask(5.0)) == ([5.0], 2)
    assert time.monotonic() - began > 0.3


def test_an_error_is_everybodys_who_shares_the_batch(make_bench: Any) -> None:
    bench = make_bench(compiled=(1, 2))
    bench.hold()
    both = [bench.ask(1.0), bench.ask(2.0)]
    bench.recorder.error = tf.errors.InvalidArgumentError(None, None, "no such state")
    bench.recorder.going.set()
    for future in both:
        assert refusal(future) == (grpc.StatusCode.INVALID_ARGUMENT, "no such state")
    bench.recorder.error = None
    assert answer(bench.ask(3.0)) == ([3.0], 1)


def test_an_uncompilable_function_runs_as_a_plain_graph(make_bench: Any) -> None:
    bench = make_bench()
    fails = threading.Event()

    def compiled(*_: Any) -> Any:
        fails.set()
        raise tf.errors.InvalidArgumentError(None, None, "not supported by XLA")

    plain = Function("search", ("x", "num_simulations"), bench.recorder, compiled, bench.sizes)
    bench.function = plain
    assert answer(bench.ask(1.0, 2.0, 3.0)) == ([1.0, 2.0, 3.0], 3)
    assert fails.is_set()
    assert plain.sizes is None


def test_closing_answers_what_waits(make_bench: Any) -> None:
    bench = make_bench(compiled=(1,))
    bench.hold()
    waiting = bench.ask(1.0)
    closing = threading.Thread(target=bench.batcher.close)
    closing.start()
    bench.recorder.going.set()
    assert answer(waiting) == ([1.0], 1)
    closing.join(20)
    with pytest.raises(ServingError, match="shutting down"):
        bench.ask(2.0)


def sizes_of(*compiled: int, allowed: tuple[int, ...] = (), max_rows: int = 512) -> BatchSizes:
    sizes = BatchSizes(max_rows, allowed)
    for size in compiled:
        sizes.add(size)
    return sizes


def test_a_batch_takes_the_requests_that_leave_the_least_padding() -> None:
    sizes = sizes_of(1, 64, 128)
    assert sizes.plan([64]) == Plan(1, 64)
    assert sizes.plan([64, 64]) == Plan(2, 128)
    assert sizes.plan([64, 64, 64]) == Plan(2, 128)
    assert sizes.plan([1, 64]) == Plan(1, 1), "not 65 of 128"
    assert sizes.plan([60, 64]) == Plan(2, 128)
    assert sizes.plan([129]) is None


def steady(sizes: BatchSizes, stream: list[list[int]], rounds: int = 400) -> float:
    """Runs the same queues again and again, compiling what is wanted; the share of padding of
    the last round."""
    share = 0.0
    for _ in range(rounds):
        rows = ran = 0
        for waiting in stream:
            plan = sizes.plan(waiting)
            if plan is None:
                sizes.add(sizes.target(waiting[0]))
                plan = sizes.plan(waiting)
            assert plan is not None
            sizes.observe(waiting, plan)
            rows += sum(waiting[: plan.num_requests])
            ran += plan.size
            if (wanted := sizes.wanted()) is not None:
                sizes.add(wanted)
        share = 1 - rows / ran
    return share


@pytest.mark.parametrize(
    "stream",
    [
        [[48]],
        [[33], [64]],
        [[20], [30], [40], [50]],
        [[n] for n in range(100, 0, -1)],  # an evaluation whose games end one by one
        [[1], [64], [64]],
    ],
)
def test_in_steady_state_at_most_a_quarter_of_the_rows_is_padding(stream: list[list[int]]) -> None:
    sizes = sizes_of(64)
    assert steady(sizes, stream) <= 0.25
    assert len(sizes.compiled) <= MAX_LEARNED


def test_sizes_that_fit_are_left_alone() -> None:
    sizes = sizes_of(64)
    assert steady(sizes, [[64]]) == 0
    assert sizes.compiled == (64,)


def test_requests_that_keep_waiting_behind_others_are_joined() -> None:
    sizes = sizes_of(32)
    assert steady(sizes, [[32] * 6]) == 0
    assert sizes.compiled == (32, 64, 128)
    assert sizes.plan([32] * 6) == Plan(4, 128)
