"""The server as a whole: its parts, their start and their orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from muprover.config import SettingsError
from muprover.model.runtime import cpu_devices, tune_for_several
from muprover.model.serving.batching import DEFAULT_MAX_ROWS, Batcher, BatchingOptions
from muprover.model.serving.flags import Batching, ServerOptions, read_server_models
from muprover.model.serving.manager import LoadOptions, Manager
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.predict import (
    MODEL_SERVICE,
    PREDICTION_SERVICE,
    ModelServicer,
    PredictionServicer,
    Predictor,
)
from muprover.model.serving.rest import RestServer
from muprover.model.serving.versions import Loader
from muprover.runfolder import num_cores
from muprover.services.model_pull import Puller
from muprover.services.server import ThreadedServer, run_until_signal
from muprover.standby import await_turn, is_standby

log = logging.getLogger(__name__)

GRACE_SECONDS = 10.0  # for calls in flight, at the end
CLOSE_SECONDS = 1.0  # for threads to notice, once there are no more calls
SWITCH_SECONDS = 0.0005  # threads wait no longer for each other: answers are due in milliseconds


class NetworkServer:
    """A network server; serves inside `running()`.

    Its ports open at once; it is NOT_SERVING until each of its models has a version to serve.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self.metrics = Metrics()
        batching = batching_options(options.batching)
        self._batcher = Batcher(batching, self.metrics)
        loader = Loader(batching.max_rows, batching.allowed_sizes, self.metrics, batching.devices)
        self.manager = Manager(
            options.models, loader, _load_options(options), self.metrics, self._note_change
        )
        predictor = Predictor(self.manager, self._batcher, self.metrics, options.as_tensor_content)
        self._servicers = PredictionServicer(predictor), ModelServicer(self.manager)
        paths = [options.metrics_path, "/metrics"] if options.metrics_path else []
        self._rest = RestServer(self.manager, predictor, self.metrics, paths)
        paths = paths or ["/metrics"]
        self._metrics_only = RestServer(self.manager, predictor, self.metrics, paths, True)
        self._puller = _puller(options, self.metrics)
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving = False
        self.port = 0

    @property
    def rest_port(self) -> int:
        return self._rest.port

    async def run(
        self, stop: asyncio.Event, on_started: Callable[[NetworkServer], None] | None = None
    ) -> None:
        """Serves until `stop` is set."""
        self._loop = asyncio.get_running_loop()
        if is_standby():
            self.manager.start()
            await asyncio.to_thread(await_turn)
        server = ThreadedServer(
            [PREDICTION_SERVICE, MODEL_SERVICE],
            self._options.port,
            self._options.host,
            health_names=("PredictionService", "ModelService"),
            health_port=self._options.health_port,
        )
        self.port = server.port
        prediction, model = self._servicers
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server.grpc)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(model, server.grpc)
        try:
            await self._start_rest()
            async with server.running(GRACE_SECONDS):
                self.manager.start()
                if self._puller is not None:
                    self._puller.start()
                log.info("gRPC on port %d, REST on port %d", self.port, self.rest_port)
                if on_started is not None:
                    on_started(self)
                await self._follow(server, stop)
        finally:
            self.manager.stop()
            if self._puller is not None:
                await asyncio.to_thread(self._puller.close)
            await self._rest.stop()
            await self._metrics_only.stop()
            await asyncio.to_thread(self._batcher.close, CLOSE_SECONDS)

    async def _start_rest(self) -> None:
        host = self._options.host
        if self._options.rest_port:
            await self._rest.start(host, max(0, self._options.rest_port), "--rest-api-port")
        if self._options.metrics_port is not None:
            await self._metrics_only.start(host, self._options.metrics_port, "--metrics-port")
            log.info("metrics on port %d", self._metrics_only.port)

    async def _follow(self, server: ThreadedServer, stop: asyncio.Event) -> None:
        """Says how it is whenever that changes, and rereads the configuration, until the end."""
        stopped = asyncio.create_task(stop.wait())
        rereading = asyncio.create_task(self._reread_models())
        try:
            while not stopped.done():
                ready = self.manager.is_ready
                if ready != self._serving:
                    self._serving = ready
                    await server.set_serving(ready)
                    log.info("serving" if ready else "not serving: a model has no version")
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({stopped, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._changed.clear()
        finally:
            stopped.cancel()
            rereading.cancel()

    async def _reread_models(self) -> None:
        """Follows changes of the `models.config`."""
        seconds = self._options.model_config_poll_seconds
        while seconds > 0 and self._options.model_config_file:
            await asyncio.sleep(seconds)
            try:
                models = read_server_models(self._options.model_config_file)
            except SettingsError as error:
                log.error("models stay as they are: %s", error)
            else:
                self.manager.apply(models)

    def _note_change(self) -> None:
        """Called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)


def serve_until_signal(options: ServerOptions) -> None:
    """Serves until SIGTERM or SIGINT."""
    at_a_time = options.batching.num_threads or num_cores()
    tune_for_several(options.intra_op_threads or num_cores(), at_a_time, options.inter_op_threads)
    sys.setswitchinterval(SWITCH_SECONDS)

    async def main(stop: asyncio.Event) -> None:
        await NetworkServer(options).run(stop)

    run_until_signal(main)
    if threading.active_count() > 1:
        # all calls have been answered, but a compilation cannot be interrupted
        logging.shutdown()
        os._exit(0)


def batching_options(batching: Batching) -> BatchingOptions:
    """On a GPU one batch runs at a time; on CPUs one on each device, or, if all are one, one per
    core."""
    devices = cpu_devices()
    cores = num_cores() if devices else 1
    return BatchingOptions(
        devices=devices if len(devices) > 1 else (),
        max_rows=batching.max_batch_size or DEFAULT_MAX_ROWS,
        timeout=batching.timeout_micros / 1e6,
        max_batches=batching.max_enqueued_batches,
        num_threads=batching.num_threads or cores,
        allowed_sizes=batching.allowed_sizes,
    )


def _puller(options: ServerOptions, metrics: Metrics) -> Puller | None:
    """Brings the versions of the one model from a trainer elsewhere, if there is such a one."""
    if not options.model_source:
        return None
    folder = Path(options.models[0].base_path)
    return Puller(options.model_source, folder, metrics.registry)


def _load_options(options: ServerOptions) -> LoadOptions:
    return LoadOptions(
        poll_seconds=options.poll_seconds,
        max_retries=options.max_load_retries,
        retry_seconds=options.load_retry_seconds,
        num_threads=options.num_load_threads,
        labels_may_wait=options.labels_may_wait,
    )
