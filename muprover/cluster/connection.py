"""The API server of a cluster: objects as plain dictionaries, failures as one sentence each."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import yaml

from muprover.config import SettingsError

Object = dict[str, Any]  # of Kubernetes, as its JSON has it

TIMEOUTS = (5.0, 30.0)  # s, to connect and between two bytes of an answer
FIELD_MANAGER = "muprover"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
MANY = 16  # requests at once
SILENCE_SECONDS = 60.0  # that a command in a pod may take between two words
SAID_BYTES = 2000  # of its complaints that are remembered


class ClusterError(RuntimeError):
    """What a cluster refuses, lacks or does not answer, in words for people."""


class Cluster:
    """One namespace of one cluster.

    The client library is used for kubeconfigs, credentials and requests; answers are taken as they
    are, so that objects newer than the library are no trouble.
    """

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        namespace: str | None = None,
    ) -> None:
        """None: what kubectl would take."""
        client = require_kubernetes()
        # each attempt that fails is a warning there; the last is told in words here
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._api, default = _api_client(kubeconfig, context)
        self.namespace = namespace or default
        self.core = client.CoreV1Api(self._api)
        self.apps = client.AppsV1Api(self._api)
        self.autoscaling = client.AutoscalingV2Api(self._api)

    @property
    def address(self) -> str:
        return str(self._api.configuration.host)

    def ask(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The JSON that a method of `core`, `apps` or `autoscaling` answers in this namespace."""
        return json.loads(self.read(method, *args, **options))

    def read(self, method: Callable[..., Any], *args: Any, **options: Any) -> bytes:
        """The same as bytes."""
        with self.open(method, *args, **options) as response:
            return cast(bytes, response.data)

    @contextmanager
    def open(self, method: Callable[..., Any], *args: Any, **options: Any) -> Iterator[Any]:
        """The same as a stream of bytes that is still arriving."""
        options = {"_request_timeout": TIMEOUTS, "namespace": self.namespace} | options
        with self.in_words():
            response = method(*args, _preload_content=False, **options)
            try:
                yield response
            finally:
                response.close()

    def patch(self, method: Callable[..., Any], name: str, body: Object) -> Any:
        """Changes the parts of an object that `body` names."""
        return self.ask(
            method, name, body=body, field_manager=FIELD_MANAGER, _content_type=STRATEGIC_MERGE
        )

    def execute(self, pod: str, container: str, command: list[str]) -> Iterator[bytes]:
        """What a command in a container writes to standard output, as it comes.

        At its end, raises `ClusterError` with the command's last words if it failed.
        """
        from kubernetes.stream import stream
        from kubernetes.stream.ws_client import ERROR_CHANNEL
        from websocket import WebSocketException

        with self.in_words():
            socket = stream(
                self.core.connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                container=container,
                command=command,
                stdin=False,
                stdout=True,
                stderr=True,
                tty=False,
                binary=True,
                _preload_content=False,
            )
        said, heard_at = b"", time.monotonic()
        broken = ClusterError("the connection to the pod broke off")
        try:
            while socket.is_open():
                socket.update(timeout=1.0)
                error, data = socket.read_stderr(timeout=0), socket.read_stdout(timeout=0)
                said = (said + error)[-SAID_BYTES:]
                if data:
                    yield data
                if data or error:
                    heard_at = time.monotonic()
                elif time.monotonic() - heard_at > SILENCE_SECONDS:
                    raise broken
        except (OSError, WebSocketException):
            raise broken from None
        finally:
            socket.close()
        status = json.loads(socket.read_channel(ERROR_CHANNEL) or "null")
        if status is None:
            raise broken
        if status.get("status") != "Success":
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise ClusterError(last or status.get("message", "it failed"))

    @contextmanager
    def in_words(self) -> Iterator[None]:
        """Raises failures of requests as `ClusterError`."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            raise self._refusal(error) from None
        except HTTPError as error:
            reason = str(getattr(error, "reason", None) or error)
            raise ClusterError(
                f"cannot reach the cluster at {self.address}: {reason.rpartition(': ')[2]}"
            ) from None

    def _refusal(self, error: Any) -> ClusterError:
        status, body = error.status, error.body
        if not status:
            status, body = _handshake(error)
        said = _message(error, body)
        if status == 401:
            return ClusterError(
                f"the cluster at {self.address} does not know you: the kubeconfig's credentials "
                "are wrong, or have expired"
            )
        if status == 403:
            return NotAllowedError(f"the cluster does not allow this: {said}")
        if status == 404:
            return NotFoundError(said)
        return ClusterError(f"the cluster at {self.address} answers: {said}")


class NotFoundError(ClusterError):
    """An object that is not there."""


class NotAllowedError(ClusterError):
    """Something that these credentials may not do."""


def require_kubernetes() -> Any:
    """The module `kubernetes.client`; it takes a second to import."""
    try:
        from kubernetes import client
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "kubernetes":
            raise
        raise SettingsError(
            "muprover cluster needs the kubernetes client; install it: "
            "pip install 'muprover[cluster]'"
        ) from None
    return client


def _api_client(kubeconfig: str | None, context: str | None) -> tuple[Any, str]:
    """A client with credentials, and the namespace that its context names."""
    from kubernetes import config

    try:
        contexts, active = config.list_kube_config_contexts(config_file=kubeconfig)
        if context is not None:
            active = _named(contexts, context)
        api = config.new_client_from_config(config_file=kubeconfig, context=active["name"])
    except config.ConfigException as error:
        if kubeconfig is None and context is None and (inside := _inside_a_pod()):
            return inside
        where = kubeconfig or "neither KUBECONFIG nor ~/.kube/config"
        raise SettingsError(
            f"no usable kubeconfig ({where}): {_first_line(error)}; name one with --kubeconfig"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        where = kubeconfig or "the kubeconfig"
        raise SettingsError(f"cannot read {where}: {_first_line(error)}") from None
    _configure(api.configuration)
    return api, active["context"].get("namespace") or "default"


def _configure(configuration: Any) -> None:
    configuration.retries = False  # a server that is away is reported at once
    configuration.connection_pool_maxsize = MANY


def _named(contexts: list[Any], name: str) -> Any:
    for context in contexts:
        if context["name"] == name:
            return context
    names = ", ".join(context["name"] for context in contexts)
    raise SettingsError(f"no context {name} in the kubeconfig; there are {names}")


def _inside_a_pod() -> tuple[Any, str] | None:
    """The client of a pod's service account; None elsewhere."""
    from pathlib import Path

    from kubernetes import client, config

    try:
        config.load_incluster_config()
    except config.ConfigException:
        return None
    own = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return client.ApiClient(), own.read_text(encoding="utf-8").strip()


def _handshake(error: Any) -> tuple[int, str]:
    """Status and body of a refusal that the client library hands on as a text alone."""
    text = str(error.reason)
    refused = re.match(r".*?Handshake status (\d+)", text)
    body = text.rpartition("-+-+-")[2]
    return int(refused[1]) if refused else 0, body[body.find("{") : body.rfind("}") + 1]


def _message(error: Any, body: Any) -> str:
    """What the API server says in an answer that is an error."""
    if isinstance(body, bytes):
        body = body.decode(errors="replace")
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, KeyError):
        return _first_line(body or error.reason or error)


def _first_line(said: Any) -> str:
    return str(said).strip().partition("\n")[0]
