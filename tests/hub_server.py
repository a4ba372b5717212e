"""A Hub of one's own on 127.0.0.1, with faults to order. Not a test file itself."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONVERTED = "fedcba9876543210fedcba9876543210fedcba98"


class HubServer(ThreadingHTTPServer):
    """Serves repositories of files from memory.

    Attributes:
        converted: Repository -> number of the pull request with safetensors, whose files are `repos["NAME@refs/pr/1"]`.
        sent: File name -> bytes of its content that went out.
        requests: (method, path, headers) of every request.
        ranges: File name -> Range headers asked for.
        faults: Called with (file, first, last) before a file is served; returns a fault or None:
            ("hangup",) breaks the connection without an answer, ("drop", n) after n bytes of it,
            ("truncate", n) sends so few and says that this was all, ("status", code, headers) answers that,
            ("whole",) ignores the range, ("shift", n) answers another range, ("redirect", address)
            points elsewhere.
        api_faults: Called with the repository; returns None, or status, body and headers to answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.cards: dict[str, dict[str, Any]] = {}
        self.converted: dict[str, int] = {}
        self.sent: Counter[str] = Counter()
        self.ranges: dict[str, list[str | None]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.faults: Any = lambda *_: None
        self.api_faults: Any = lambda *_: None
        self.sizes = True

    def handle_error(self, *_: Any) -> None:
        """Clients that walk away are part of the tests."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo: str, folder: Path, **card: Any) -> None:
        """Serve what lies in `folder` as `repo`."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.repos[repo], self.cards[repo] = files, card

    def forget(self) -> None:
        """Count from zero again."""
        self.sent.clear()
        self.ranges.clear()
        self.requests.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.command, path, headers))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            self._api(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/discussions", path):
            self._discussions(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3], head, headers.get("range"))
        else:
            self._refuse(404, {})

    def _api(self, repo: str, what: str | None, revision: str | None) -> None:
        fault = self.server.api_faults(repo)
        if fault is not None:
            self._send(*fault)
        elif repo not in self.server.repos:
            self._refuse(401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", "v1.0", "refs/pr/1", COMMIT, CONVERTED):
            self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            files = self.server.repos[f"{repo}@{revision}" if f"{repo}@{revision}" in self.server.repos else repo]
            commit = CONVERTED if revision == "refs/pr/1" and repo in self.server.converted else COMMIT
            said: Any = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
            if what != "tree":
                siblings = [
                    {"rfilename": n} | ({"size": len(b)} if self.server.sizes else {}) for n, b in files.items()
                ]
                said = {"id": repo, "sha": commit, "siblings": siblings, "cardData": self.server.cards[repo]}
            self._send(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _discussions(self, repo: str) -> None:
        number = self.server.converted.get(repo)
        proposal = {"num": number, "title": "Adding `safetensors` variant of this model", "status": "open"}
        proposal |= {"author": {"name": "SFconvertbot"}, "createdAt": "2024-01-01T00:00:00.000Z"}
        proposal |= {"repo": {"name": repo, "type": "model"}, "isPullRequest": True}
        proposals = [] if number is None else [proposal]
        answer = {"discussions": proposals, "count": len(proposals), "start": 0}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str, head: bool, asked: str | None) -> None:
        proposal = f"{repo}@refs/pr/1"
        content = self.server.repos.get(proposal if revision == CONVERTED else repo, {}).get(name)
        if content is None or revision not in ("main", COMMIT, CONVERTED):
            self._refuse(404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if head:
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            return
        self.server.ranges.setdefault(name, []).append(asked)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
        first, last = (int(match[1]), min(int(match[2]), len(content) - 1)) if match else (0, len(content) - 1)
        fault = self.server.faults(name, first, last) or ("none",)
        if fault[0] == "hangup":
            self.close_connection = True
            return
        if fault[0] == "status":
            self._refuse(fault[1], fault[2])
            return
        if fault[0] == "redirect":
            self._refuse(302, {"Location": fault[1] + self.path})
            return
        if fault[0] == "shift":
            first, last = first + fault[1], last + fault[1]
        if match is None or fault[0] == "whole":
            self._send(200, content, headers, name)
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        body = content[first : last + 1]
        if fault[0] == "truncate":
            body = body[: fault[1]]
        self._send(206, body, headers, name, cut=fault[1] if fault[0] == "drop" else None)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], name: str | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        part = body if cut is None else body[:cut]
        if name is not None:
            # Before the write: a client that has read the last byte finds it counted.
            self.server.sent[name] += len(part)
        try:
            self.wfile.write(part)
            self.wfile.flush()
        except (ConnectionError, BrokenPipeError):
            self.close_connection = True
            return
        if cut is not None:
            self.close_connection = True

    def _refuse(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, b"", headers)


@contextmanager
def serving() -> Iterator[HubServer]:
    """A server on a free port, stopped at the end."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
