"""A filer: what its REST API documents of LUNs, volumes, their snapshots and jobs, on loopback, with TLS.

https://docs.netapp.com/us-en/ontap-restapi/: "Manage volume snapshots", "Manage storage volumes", "Manage LUNs", "View
and manage cluster jobs", and of its concepts "Records and pages", "Synchronous and asynchronous operations".
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "snapmount-test", "s3cret%:word"
PAGE = 2  # records, as if max_records were that


@dataclass
class Filer:
    """Its state, and what it was asked."""

    port: int = 0
    svms: dict[str, str] = field(default_factory=lambda: {"vs0": "s-0", "vs1": "s-1"})
    volumes: list[dict[str, Any]] = field(default_factory=list)
    luns: list[dict[str, Any]] = field(default_factory=list)
    snapshots: dict[str, dict[str, str]] = field(default_factory=dict)  # by volume: uuid by name
    jobs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # what each answers, the last one for ever
    asynchronous: bool = False  # whether calls return before they are done
    failing: dict[str, Any] | None = None  # what jobs end with
    calls: list[str] = field(default_factory=list)
    logins: set[str | None] = field(default_factory=set)

    def add_volume(self, name: str, svm: str = "vs0", path: str | None = None) -> str:
        uuid = f"0353dc05-405f-11e9-acb6-00505600000{len(self.volumes)}"
        space = {"size": 4000, "available": 1000}
        volume = {"uuid": uuid, "name": name, "svm": {"name": svm, "uuid": self.svms[svm]}, "space": space}
        self.volumes.append(volume | ({"nas": {"path": path}} if path else {}))
        self.snapshots[uuid] = {"hourly.0": "f-0"}
        return uuid

    def add_lun(self, volume: str, serial: str) -> None:
        (found,) = (each for each in self.volumes if each["uuid"] == volume)
        location = {"volume": {"uuid": volume, "name": found["name"]}}
        uuid = f"lun-{len(self.luns)}"
        self.luns.append({"uuid": uuid, "serial_number": serial, "svm": found["svm"], "location": location})

    # -- what it answers ------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        match method, path.strip("/").split("/"):
            case "GET", ["api", "storage", "luns"]:
                return 200, _page(path, self.luns, query)
            case "GET", ["api", "storage", "volumes"]:
                return 200, _page(path, self.volumes, query)
            case "GET", ["api", "storage", "volumes", uuid]:
                found = [each for each in self.volumes if each["uuid"] == uuid]
                return (200, found[0]) if found else _error(404, "4", "entry doesn't exist")
            case _, ["api", "storage", "volumes", uuid, "snapshots", *which]:
                if uuid not in self.snapshots:
                    return _error(404, "4", "entry doesn't exist")
                return self._snapshots(method, path, query, body, uuid, which)
            case "GET", ["api", "cluster", "jobs", uuid]:
                states = self.jobs[uuid]
                return 200, states.pop(0) if len(states) > 1 else states[0]
        return _error(405, "3", "The requested operation is not supported")

    def _snapshots(
        self, method: str, path: str, query: dict[str, str], body: Any, volume: str, which: list[str]
    ) -> tuple[int, Any]:
        there = self.snapshots[volume]
        if method == "GET" and not which:
            records = [
                {"name": name, "uuid": uuid, "_links": {"self": {"href": f"{path}/{uuid}"}}}
                for name, uuid in there.items()
            ]
            return 200, _page(path, records, query)
        if method == "POST" and not which:
            if body["name"] in there:
                return _error(409, "1638600", f"Snapshot {body['name']} already exists on volume")
            return self._done(
                "POST", lambda: there.update({body["name"]: f"snap-{len(there)}"}), int(query["return_timeout"])
            )
        if method == "DELETE" and which:
            name = next((name for name, uuid in there.items() if uuid == which[0]), None)
            if name is None:
                return _error(404, "4", "entry doesn't exist")
            return self._done("DELETE", lambda: there.pop(name), int(query["return_timeout"]))
        return _error(405, "3", "The requested operation is not supported")

    def _done(self, method: str, work: Any, return_timeout_s: int) -> tuple[int, Any]:
        assert 0 <= return_timeout_s <= 120
        if not self.asynchronous:
            work()
            return (201 if method == "POST" else 200), {}
        uuid = f"6f68c85b-45e1-11e9-8fc7-00505600000{len(self.jobs)}"
        end: dict[str, Any] = self.failing or {"state": "success", "message": "success", "code": 0}
        if not self.failing:
            work()
        running = {"uuid": uuid, "state": "running", "message": "running"}
        self.jobs[uuid] = [{"uuid": uuid, "state": "queued"}, running, {"uuid": uuid} | end]
        return 202, {"job": {"uuid": uuid, "_links": {"self": {"href": f"/api/cluster/jobs/{uuid}"}}}}


def _page(path: str, records: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """Those that the query is for, some of them, and where the next are."""
    for key in query.keys() - {"fields", "start", "return_timeout"}:
        records = [each for each in records if _value(each, key) == query[key]]
    start = int(query.get("start", 0))
    shown, rest = records[start : start + PAGE], records[start + PAGE :]
    answer: dict[str, Any] = {"records": shown, "num_records": len(shown)}
    if rest:
        others = "&".join(f"{key}={value}" for key, value in query.items() if key != "start")
        answer["_links"] = {"next": {"href": f"{path}?start={start + PAGE}&{others}"}}
    return answer


def _value(record: Any, key: str) -> Any:
    for step in key.split("."):
        record = record.get(step, {})
    return record


def _error(status: int, code: str, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "code": code}}


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[tuple[Filer, Path]]:
    """A filer, and the certificate by which it is known."""
    certificate = _certificate(directory)
    filer = Filer()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            filer.calls.append(f"{self.command} {self.path}")
            filer.logins.add(self.headers["Authorization"])
            expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if self.headers["Authorization"] != expected:
                status, answer = _error(401, "6691623", "User is not authorized.")
            else:
                status, answer = filer.answer(self.command, parts.path, query, json.loads(body or b"null"))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/hal+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _handle  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing: filer.calls has it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, directory / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    filer.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield filer, certificate
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _certificate(directory: Path) -> Path:
    certificate = directory / "filer.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=snapmount-test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    command += ["-addext", "keyUsage=digitalSignature,keyCertSign"]
    command += ["-keyout", str(directory / "key.pem"), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate
