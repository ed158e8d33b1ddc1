"""Batches across clients: requests wait while the cores are busy, and then run together.

Nobody waits for company: while fewer batches run than there may, the thread that brings a request
runs what is there, and hands nothing on; what had to wait is run by threads of the batcher's own.
Requests share a batch if they ask the same function of the same version for the same number of
simulations (a batch runs to the most of its rows). Rows do not depend on each other, so a batch
that is padded to a compiled size answers what each request would have been answered alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from muprover.model.serving.batch_sizes import Plan
from muprover.model.serving.errors import ServingError, as_serving_error, refuse
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.versions import Function, LoadedVersion, example_rows

log = logging.getLogger(__name__)

Array = NDArray[Any]

DEFAULT_MAX_ROWS = 4096
COMPILING_NICENESS = 10


@dataclass(frozen=True)
class BatchingOptions:
    """What a `batching.config` says."""

    max_rows: int = DEFAULT_MAX_ROWS  # of one request, and of one batch
    timeout: float = 0.0  # seconds that a batch which is not full waits for more
    max_batches: int = 64  # waiting in one queue
    num_threads: int = 1  # that run batches
    devices: tuple[str, ...] = ()  # one for each batch that runs; empty: where TensorFlow wants to
    allowed_sizes: tuple[int, ...] = ()  # empty: learned from what clients send


@dataclass(eq=False)
class Task:
    """One request's rows."""

    inputs: Mapping[str, Array]
    rows: int
    outputs: Sequence[str]
    deadline: float | None  # of the monotonic clock
    arrived: float = field(default_factory=time.monotonic)
    answer: Future[dict[str, Any]] = field(default_factory=Future)


class Key(NamedTuple):
    """What tasks that may share a batch have in common."""

    version: LoadedVersion
    function: Function
    num_simulations: int


class Choice(NamedTuple):
    """A batch that may run: the first of some tasks, as the plan says."""

    key: Key
    tasks: list[Task]
    plan: Plan


class Batch(NamedTuple):
    key: Key
    tasks: list[Task]
    size: int
    device: str


class Batcher:
    """Runs at most `options.num_threads` batches at a time, on a device each if there are several,
    and compiles on one more thread."""

    def __init__(self, options: BatchingOptions, metrics: Metrics) -> None:
        self._options = options
        self._metrics = metrics
        self._queues: dict[Key, deque[Task]] = {}
        self._lock = threading.Lock()
        self._may_run = threading.Condition(self._lock)
        self._may_compile = threading.Condition(self._lock)
        self._closed = False
        self._free = list(options.devices or [""] * options.num_threads)  # devices
        self._to_compile: deque[tuple[Key, int]] = deque()
        names = [f"batch-{i}" for i in range(len(self._free))]
        self._threads = [threading.Thread(target=self._work, name=name) for name in names]
        self._threads.append(threading.Thread(target=self._compile, name="compile"))
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    @property
    def max_rows(self) -> int:
        return self._options.max_rows

    def submit(
        self,
        version: LoadedVersion,
        function: Function,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        deadline: float | None = None,
        helps: bool = False,
    ) -> Future[dict[str, Any]]:
        """The wanted outputs by name, later; inputs have the batch first, all the same.

        helps: the calling thread goes on to `help`, so that no other need be woken.
        """
        key = Key(version, function, _most_simulations(inputs))
        rows = len(next(iter(inputs.values()))) if function.sizes is not None else 1
        task = Task(inputs, rows, outputs, deadline)
        if function.sizes is not None and rows > self._options.max_rows:
            refuse(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Task size {rows} is larger than maximum input batch size "
                f"{self._options.max_rows}",
            )
        with self._lock:
            if self._closed:
                refuse(grpc.StatusCode.UNAVAILABLE, "The server is shutting down")
            queue = self._queues.setdefault(key, deque())
            if len(queue) and self._is_full(queue, rows):
                refuse(
                    grpc.StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full",
                )
            queue.append(task)
            if not helps:
                self._wake()
        return task.answer

    def help(self) -> None:
        """Runs the next batch on the calling thread, if one more may run now."""
        with self._lock:
            batch, _ = self._take()
            if batch is None:
                self._wake()  # whatever there is to wait for
                return
        self._run(batch)

    def close(self, seconds: float = 10.0) -> None:
        """Runs what is waiting, then ends the threads; waits at most so long for each."""
        with self._lock:
            self._closed = True
            self._may_run.notify_all()
            self._may_compile.notify_all()
        for thread in self._threads:
            thread.join(seconds)

    def _is_full(self, queue: deque[Task], rows: int) -> bool:
        waiting = sum(task.rows for task in queue) + rows
        return waiting > self._options.max_batches * self._options.max_rows

    def _work(self) -> None:
        while True:
            with self._lock:
                batch, wait = self._take()
                while batch is None:
                    if self._closed and not self._queues:
                        self._may_compile.notify()  # for it may end as well
                        return
                    self._may_run.wait(wait)
                    batch, wait = self._take()
            self._run(batch)

    def _wake(self) -> None:
        """Has another thread look after what is waiting, if one more batch may run now."""
        if self._free:
            self._may_run.notify()

    def _take(self) -> tuple[Batch | None, float | None]:
        """The batch whose first task has waited longest, and a device for it; if none may run, how
        long to wait."""
        if not self._free:
            return None, None
        chosen: Choice | None = None
        wait = None
        now = time.monotonic()
        for key in list(self._queues):
            queue = self._queues[key]
            _drop_lost(queue, now)
            if not queue:
                del self._queues[key]
                continue
            left = self._seconds_until_due(queue, now)
            if left > 0:
                wait = left if wait is None else min(wait, left)
                continue
            choice = self._choose(key, queue)
            if choice and (chosen is None or choice.tasks[0].arrived < chosen.tasks[0].arrived):
                chosen = choice
        return (None, wait) if chosen is None else (self._pop(chosen), None)

    def _seconds_until_due(self, queue: deque[Task], now: float) -> float:
        """Before a batch that is not full may run."""
        if not self._options.timeout or self._closed:
            return 0.0
        if sum(task.rows for task in queue) >= self._options.max_rows:
            return 0.0
        return queue[0].arrived + self._options.timeout - now

    def _choose(self, key: Key, queue: deque[Task]) -> Choice | None:
        """What of a queue may run; tasks for which no size is compiled let others pass."""
        sizes = key.function.sizes
        if sizes is None:
            return Choice(key, [queue[0]], Plan(1, 1))
        tasks = [task for task in queue if sizes.runnable(task.rows) is not None]
        if len(tasks) < len(queue):
            large = next(task for task in queue if sizes.runnable(task.rows) is None)
            self._request_compilation(key, sizes.target(large.rows))
        plan = sizes.plan([task.rows for task in tasks])
        return None if plan is None else Choice(key, tasks, plan)

    def _pop(self, choice: Choice) -> Batch:
        """Takes the tasks of the chosen batch off their queue, and a device for it."""
        key, candidates, plan = choice
        device = self._free.pop()
        sizes, queue = key.function.sizes, self._queues[key]
        if sizes is not None:
            sizes.observe([task.rows for task in candidates], plan)
            wanted = sizes.wanted()
            if wanted is not None:
                self._request_compilation(key, wanted)
        tasks = candidates[: plan.num_requests]
        for task in tasks:
            queue.remove(task)
        if queue:
            self._wake()
        else:
            del self._queues[key]
        return Batch(key, tasks, plan.size, device)

    def _request_compilation(self, key: Key, size: int) -> None:
        if any(k.function is key.function and s == size for k, s in self._to_compile):
            return
        self._to_compile.append((key, size))
        self._may_compile.notify()

    def _run(self, batch: Batch) -> None:
        try:
            self._answer(batch)
        finally:
            with self._lock:
                self._free.append(batch.device)
                if self._closed:
                    self._may_run.notify_all()
                elif self._queues:
                    self._wake()

    def _answer(self, batch: Batch) -> None:
        """Answers the tasks of a batch, with outputs or with what went wrong."""
        began = time.monotonic()
        tasks = [task for task in batch.tasks if task.answer.set_running_or_notify_cancel()]
        if not tasks:
            return
        for task in tasks:
            self._metrics.queue_seconds.observe(began - task.arrived)
        try:
            answers = _execute(batch.key, tasks, batch.size, batch.device)
        except BaseException as error:
            if not isinstance(error, (ServingError, tf.errors.OpError)):
                log.exception("%s failed", batch.key.function.name)
            for task in tasks:
                task.answer.set_exception(_explain(error))
            return
        for task, answer in zip(tasks, answers, strict=True):
            task.answer.set_result(answer)
        self._count(batch, tasks)

    def _count(self, batch: Batch, tasks: Sequence[Task]) -> None:
        name, rows = batch.key.function.name, sum(task.rows for task in tasks)
        self._metrics.batches.labels(name).inc()
        self._metrics.batch_rows.labels(name).inc(max(rows, batch.size))
        self._metrics.padded_rows.labels(name).inc(max(0, batch.size - rows))
        asked = (
            task.inputs["num_simulations"].sum() for task in tasks if batch.key.num_simulations
        )
        self._metrics.simulations.inc(max(0, int(sum(asked))))

    def _compile(self) -> None:
        """The compiling thread: gives way to those that serve."""
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), COMPILING_NICENESS)
        while True:
            with self._lock:
                while not self._to_compile:
                    if self._closed and not self._queues:
                        return
                    self._may_compile.wait()
                key, size = self._to_compile[0]
            try:
                seconds = key.version.program.compile(key.function, key.version, size)
                self._metrics.compile_seconds.inc(seconds)
            except Exception as error:
                log.exception("compiling %s for %d rows failed", key.function.name, size)
                self._fail(key, error)
            with self._lock:
                self._to_compile.popleft()
                self._may_run.notify_all()

    def _fail(self, key: Key, error: Exception) -> None:
        with self._lock:
            tasks = self._queues.pop(key, ())
        for task in tasks:
            if task.answer.set_running_or_notify_cancel():
                task.answer.set_exception(_explain(error))


def _execute(key: Key, tasks: Sequence[Task], size: int, device: str) -> list[dict[str, Any]]:
    """The outputs that each task wants."""
    function, weights = key.function, key.version.on(device)
    if function.sizes is None:
        outputs = function.run(weights, tasks[0].inputs, device)
        return [{name: outputs[name].numpy() for name in tasks[0].outputs}]
    definition = key.version.program.signature_defs[function.name]
    padding = size - sum(task.rows for task in tasks)
    inputs = {}
    for name in function.inputs:
        parts = [task.inputs[name] for task in tasks]
        if padding:
            parts.append(example_rows(name, definition.inputs[name], padding))
        inputs[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    outputs = function.run(weights, inputs, device)
    wanted = {name for task in tasks for name in task.outputs}
    arrays = {name: outputs[name].numpy() for name in wanted}
    answers, start = [], 0
    for task in tasks:
        rows = slice(start, start + task.rows)
        answers.append({name: arrays[name][rows] for name in task.outputs})
        start += task.rows
    return answers


def _drop_lost(queue: deque[Task], now: float) -> None:
    """Forgets tasks that nobody waits for any more."""
    lost = [
        task
        for task in queue
        if task.answer.cancelled() or (task.deadline is not None and task.deadline < now)
    ]
    for task in lost:
        queue.remove(task)
        if task.answer.set_running_or_notify_cancel():
            task.answer.set_exception(
                ServingError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "Run() timeout exceeded while waiting in batching queue",
                )
            )


def _most_simulations(inputs: Mapping[str, Array]) -> int:
    asked = inputs.get("num_simulations")
    return int(asked.max()) if asked is not None and asked.size else 0


def _explain(error: BaseException) -> ServingError:
    if isinstance(error, tf.errors.OpError):
        codes = {code.value[0]: code for code in grpc.StatusCode}
        return ServingError(codes.get(error.error_code, grpc.StatusCode.INTERNAL), error.message)
    return as_serving_error(error)
