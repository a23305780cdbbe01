"""A small Hugging Face Hub on localhost: the endpoints its client really calls, over files in memory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One model or dataset. gated: a token is needed; private: without one it does not seem to exist."""

    files: dict[str, bytes]
    kind: str = "model"
    gated: bool = False
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def revision(self, name: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a branch or commit."""
        for branch, files in {"main": self.files, **self.branches}.items():
            commit = self.commit(files)
            if name in {branch, commit}:
                return commit, files
        return None

    @staticmethod
    def commit(files: dict[str, bytes]) -> str:
        state = hashlib.sha1()
        for name in sorted(files):
            state.update(name.encode() + b"\0" + files[name])
        return state.hexdigest()


class Hub:
    """What the server knows and the requests it saw. token: the one it accepts; fail: status to answer all with;
    portal: what to answer all with instead, as a login page does."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        self.token = "hf_good"
        self.fail: int | None = None
        self.portal: bytes | None = None
        self.url = ""


@contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Serve `repositories` (by ``org/name``) until the block ends."""
    hub = Hub(repositories)

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        if self.state.fail:
            self._send(self.state.fail, {}, b"")
            return
        if self.state.portal is not None:
            self._send(200, {"Content-Type": "text/html"}, self.state.portal)
            return
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            kind, (organisation, name, *rest) = parts[1].removesuffix("s"), parts[2:]
        else:
            kind = "dataset" if parts[0] == "datasets" else "model"
            organisation, name, *rest = parts[1:] if kind == "dataset" else parts
        repository = self.state.repositories.get(f"{organisation}/{name}")
        allowed = self.headers.get("Authorization") == f"Bearer {self.state.token}"
        if repository is None or repository.kind != kind or (repository.private and not allowed):
            # the real one does not tell strangers whether a name is private or free
            self._send(404 if allowed else 401, {"X-Error-Code": "RepoNotFound"}, b"")
        elif parts[0] == "api" and rest[:1] == ["revision"]:
            self._facts(f"{organisation}/{name}", repository, "/".join(rest[1:]))
        elif parts[0] == "api" and rest[:1] == ["tree"]:
            self._tree(repository, rest[1])
        elif rest[:1] == ["resolve"]:
            if repository.gated and not allowed:
                self._send(403 if "Authorization" in self.headers else 401, {"X-Error-Code": "GatedRepo"}, b"")
            else:
                self._file(repository, rest[1], "/".join(rest[2:]), body)
        else:
            self._send(404, {}, b"")

    def _facts(self, identifier: str, repository: Repository, revision: str) -> None:
        found = repository.revision(revision)
        if found is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        commit, files = found
        facts = {"id": identifier, "sha": commit, "siblings": [{"rfilename": name} for name in sorted(files)]}
        facts |= {"private": repository.private, "gated": repository.gated and "manual", "tags": [], "downloads": 0}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())

    def _tree(self, repository: Repository, revision: str) -> None:
        found = repository.revision(revision)
        if found is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in sorted(found[1].items())
        ]
        self._send(200, {"Content-Type": "application/json"}, json.dumps(entries).encode())

    def _file(self, repository: Repository, revision: str, name: str, body: bool) -> None:
        found = repository.revision(revision)
        if found is None or name not in found[1]:
            code = "RevisionNotFound" if found is None else "EntryNotFound"
            self._send(404, {"X-Error-Code": code}, b"")
            return
        commit, files = found
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"'}
        self._send(200, headers, files[name], body)

    def _send(self, status: int, headers: dict[str, str], content: bytes, body: bool = True) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)
