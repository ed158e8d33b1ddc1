"""A small API server of Kubernetes, for tests: real HTTP and websockets over made-up objects.

It knows one namespace with one release. Commands that are executed in a container really run, on
this machine; what pods tell of themselves, and what they have logged, is given.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "of-the-test"
KINDS = {
    "pods": "api/v1",
    "configmaps": "api/v1",
    "deployments": "apis/apps/v1",
    "statefulsets": "apis/apps/v1",
    "horizontalpodautoscalers": "apis/autoscaling/v2",
}
PATH = re.compile(
    r"/(?P<group>api/v1|apis/[a-z]+/v\d)/namespaces/(?P<namespace>[^/]+)/(?P<kind>[a-z]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<part>[a-z]+)(?:/(?P<rest>.*))?)?)?"
)
ACCEPT_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of every websocket
FRAME = 1000  # bytes


class ApiServer:
    """Objects by kind and name, what their pods answer, and what was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        self.answers: dict[tuple[str, str], str] = {}  # by "pod:port" and path
        self.logs: dict[str, str] = {}  # by pod
        self.patches: list[tuple[str, str, Any]] = []  # kind/part, name, body
        self.deleted: list[tuple[str, str]] = []  # name, seconds of grace
        self.forbidden: set[str] = set()  # kinds
        self.broken_transfer = False
        self.port = 0

    def add(self, kind: str, body: dict[str, Any]) -> None:
        self.objects[kind][body["metadata"]["name"]] = body

    @contextmanager
    def running(self) -> Iterator[ApiServer]:
        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        http.api = self  # type: ignore[attr-defined]
        self.port = http.server_port
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            http.shutdown()
            http.server_close()

    def kubeconfig(self, token: str = TOKEN, **context: str) -> str:
        """Its text, with one context, `test`."""
        cluster = {"server": f"http://127.0.0.1:{self.port}"}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"} | context}],
            }
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def api(self) -> ApiServer:
        api: ApiServer = self.server.api  # type: ignore[attr-defined]
        return api

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._handle(self._get)

    def do_POST(self) -> None:
        self._handle(self._post)

    def do_PATCH(self) -> None:
        self._handle(self._patch)

    def do_DELETE(self) -> None:
        self._handle(self._delete)

    def _handle(self, act: Any) -> None:
        url = urlsplit(self.path)
        self.query = {key: values for key, values in parse_qs(url.query).items()}
        self.where = PATH.fullmatch(unquote(url.path))
        kind = self.where["kind"] if self.where else ""
        if self.headers["authorization"] != f"Bearer {TOKEN}":
            self._fail(401, "Unauthorized")
        elif self.where is None or KINDS.get(kind) != self.where["group"]:
            self._fail(404, f"the server has no {url.path}")
        elif f"{kind}/{self.where['part']}" in self.api.forbidden or kind in self.api.forbidden:
            self._fail(403, f'{kind} is forbidden: User "u" cannot list resource "{kind}"')
        else:
            act(self.api.objects[kind])

    def _get(self, objects: dict[str, Any]) -> None:
        where = self.where
        if where["name"] is None:
            selected = [o for o in objects.values() if self._is_selected(o)]
            if self.query.get("watch") == ["True"] or self.query.get("watch") == ["true"]:
                events = [json.dumps({"type": "ADDED", "object": o}) + "\n" for o in selected]
                self._send("".join(events))
            else:
                self._send(json.dumps({"items": selected}))
        elif where["part"] == "proxy":
            answer = self.api.answers.get((where["name"], where["rest"]))
            self._send(answer) if answer is not None else self._fail(503, "no such port")
        elif where["name"] not in objects:
            self._fail(404, f'{where["kind"]} "{where["name"]}" not found')
        elif where["part"] == "log":
            lines = self.api.logs[where["name"]].splitlines(keepends=True)
            self._send("".join(lines[len(lines) - int(self.query["tailLines"][0]) :]))
        elif where["part"] == "exec":
            self._execute(self.query["command"])
        else:
            self._send(json.dumps(objects[where["name"]]))

    def _post(self, objects: dict[str, Any]) -> None:
        body = self._body()
        objects[body["metadata"]["name"]] = body
        self._send(json.dumps(body), 201)

    def _delete(self, objects: dict[str, Any]) -> None:
        """Another pod takes the place of one that is deleted, as its Deployment sees to."""
        name = self.where["name"]
        self.api.deleted.append((name, self.query.get("gracePeriodSeconds", [""])[0]))
        body = objects.pop(name)
        metadata = body["metadata"] | {"name": f"{name}-again"}
        self.api.logs[metadata["name"]] = ""
        self.api.add(self.where["kind"], body | {"metadata": metadata})
        self._send(json.dumps(body))

    def _patch(self, objects: dict[str, Any]) -> None:
        body, where = self._body(), self.where
        assert self.headers["content-type"] == "application/strategic-merge-patch+json"
        assert self.query["fieldManager"] == ["muprover"]
        if where["name"] not in objects:
            return self._fail(404, f'{where["kind"]} "{where["name"]}" not found')
        self.api.patches.append((where["kind"], where["name"], body))
        objects[where["name"]] = merge(objects[where["name"]], body)
        self._send(json.dumps(objects[where["name"]]))

    def _is_selected(self, body: dict[str, Any]) -> bool:
        labels = body["metadata"].get("labels", {})
        terms = [t for t in self.query.get("labelSelector", [""])[0].split(",") if t]
        return all(labels.get(key) == value for key, _, value in (t.partition("=") for t in terms))

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["content-length"])))

    def _send(self, text: str, status: int = 200) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, status: int, message: str) -> None:
        self._send(json.dumps({"kind": "Status", "message": message, "code": status}), status)

    def _execute(self, command: list[str]) -> None:
        """Runs a command, and sends what it writes as a container's: a channel a frame."""
        key = self.headers["sec-websocket-key"].encode()
        accept = base64.b64encode(hashlib.sha1(key + ACCEPT_KEY).digest()).decode()
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "Upgrade")
        self.send_header("sec-websocket-accept", accept)
        self.send_header("sec-websocket-protocol", "v4.channel.k8s.io")
        self.end_headers()
        words = [sys.executable if word == "python" else word for word in command]
        done = subprocess.run(words, capture_output=True, check=False)
        self._send_channel(2, done.stderr)
        if self.api.broken_transfer:
            self._send_channel(1, done.stdout[: len(done.stdout) // 2])
        else:
            self._send_channel(1, done.stdout)
        status = "Failure" if done.returncode else "Success"
        self._send_channel(3, json.dumps({"status": status, "message": "exit code"}).encode())
        self.wfile.write(b"\x88\x00")  # the end
        self.close_connection = True

    def _send_channel(self, channel: int, data: bytes) -> None:
        for start in range(0, len(data), FRAME):
            payload = bytes([channel]) + data[start : start + FRAME]
            self.wfile.write(b"\x82\x7e" + struct.pack(">H", len(payload)) + payload)


def merge(body: Any, patch: Any) -> Any:
    """A strategic merge, as far as the tests need one: lists of named things merge by their name,
    mounts by their path, all others are replaced."""
    if isinstance(patch, dict) and isinstance(body, dict):
        return body | {key: merge(body.get(key), value) for key, value in patch.items()}
    if isinstance(patch, list) and isinstance(body, list) and patch and isinstance(patch[0], dict):
        key = "mountPath" if "mountPath" in patch[0] else "name"
        merged = {item[key]: item for item in body}
        for item in patch:
            merged[item[key]] = merge(merged.get(item[key], {}), item)
        return list(merged.values())
    return deepcopy(patch)
