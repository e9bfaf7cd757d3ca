"""A server on the loopback interface that answers as the Hugging Face Hub does, and keeps what it is sent."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

import trainables.hub

DATE = "2026-12-01T00:00:00.000Z"
SHA = "0" * 40


class StubHub(ThreadingHTTPServer):
    """Repositories by 'models/ORG/NAME' or 'datasets/ORG/NAME': the files of each, and whether it is private."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.account: dict[str, Any] = {
            "type": "user",
            "name": "me",
            "orgs": [{"name": "team"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        self.refuses: dict[str, tuple[int, dict[str, Any]]] = {}
        """Beginnings of paths -> status and body that they are answered with."""
        self.asked: list[tuple[str, str]] = []
        """Method and path of each request, in order."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def changes(self) -> list[str]:
        """The requests that would have changed something on the Hub."""
        return [path for method, path in self.asked if method != "GET" and re.search("repos/create|/commit/", path)]


class _Handler(BaseHTTPRequestHandler):
    server: StubHub

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _begin(self) -> str | None:
        """The path, which is noted; None if it was answered already."""
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        for start, (status, body) in self.server.refuses.items():
            if path.startswith(start):
                self._body()
                self._answer(status, body)
                return None
        return path

    def _repo(self, path: str) -> tuple[str, str] | None:
        """The repository that a path of the API is about, and the rest of the path."""
        found = re.match(r"/api/((?:models|datasets)/[^/]+/[^/]+)/?(.*)", path)
        return None if found is None else (found[1], found[2])

    def _missing(self, code: str) -> None:
        self._answer(404, {"error": "not found"}, {"X-Error-Code": code, "X-Error-Message": "not found"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if (path := self._begin()) is None:
            return
        if path == "/api/whoami-v2":
            self._answer(200, self.server.account)
            return
        if (file := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.*)", path)) is not None:
            content = self.server.files[f"{'datasets' if file[1] else 'models'}/{file[2]}"].get(file[3])
            if content is None:
                self._missing("EntryNotFound")
                return
            headers = {"ETag": f'"{SHA}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            part = content if wanted is None else content[int(wanted[1]) : int(wanted[2]) + 1]
            self._answer(200 if wanted is None else 206, part, headers)
            return
        asked = self._repo(path)
        if asked is None or asked[0] not in self.server.files:
            self._missing("RepoNotFound")
            return
        repo, rest = asked
        if rest.startswith("tree/"):
            below = rest.split("/", 2)[2] if rest.count("/") > 1 else ""
            inside = [n for n in self.server.files[repo] if not below or n.startswith(f"{below}/")]
            if below and not inside:
                self._missing("EntryNotFound")
                return
            self._answer(200, [self._entry(repo, name) for name in self._with_folders(inside, below)])
            return
        name = repo.partition("/")[2]
        siblings = [{"rfilename": n} for n in self.server.files[repo]]
        about = {"_id": "1", "id": name, "modelId": name, "sha": SHA, "private": self.server.private[repo]}
        self._answer(200, {**about, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _with_folders(self, names: list[str], below: str) -> list[str]:
        depth = below.count("/") + 1 if below else 0
        folders = {"/".join(n.split("/")[:k]) for n in names for k in range(depth + 1, n.count("/") + 1)}
        return [*sorted(folders), *names]

    def _entry(self, repo: str, name: str) -> dict[str, Any]:
        content = self.server.files[repo].get(name)
        if content is None:
            return {"type": "directory", "path": name, "oid": SHA, "size": 0}
        return {"type": "file", "path": name, "oid": SHA, "size": len(content)}

    def do_POST(self) -> None:
        if (path := self._begin()) is None:
            return
        body = self._body()
        if path == "/api/validate-yaml":
            self._answer(200, {"warnings": [], "errors": []})
            return
        if path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given.get('type', 'model')}s/{given.get('organization') or 'me'}/{given['name']}"
            known = repo in self.server.files
            self.server.files.setdefault(repo, {})
            self.server.private.setdefault(repo, given.get("private") or given.get("visibility") == "private")
            url = f"{self.server.url}/{repo.removeprefix('models/')}"
            self._answer(409 if known else 200, {"url": url, "error": "You already created this repo"})
            return
        asked = self._repo(path)
        if asked is None or asked[0] not in self.server.files:
            self._missing("RepoNotFound")
            return
        repo, rest = asked
        files = self.server.files[repo]
        if rest.startswith("preupload/"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for n in names]
            self._answer(200, {"files": modes})
        elif rest.startswith("paths-info/"):
            names = json.loads(body)["paths"]
            folders = {"/".join(n.split("/")[:k]) for n in files for k in range(1, n.count("/") + 1)}
            self._answer(200, [self._entry(repo, n) for n in names if n in files or n in folders])
        elif rest.startswith("commit/"):
            self._commit(repo, body)
        else:
            self._missing("EntryNotFound")

    def _commit(self, repo: str, body: bytes) -> None:
        files = self.server.files[repo]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "deletedFolder":
                for name in [n for n in files if n.startswith(value["path"])]:
                    del files[name]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.url}/{repo.removeprefix('models/')}/commit/{SHA}"
        self._answer(200, {"commitUrl": url, "commitOid": SHA, "hookOutput": "", "success": True})


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    """The stub, in the place of the Hub for this process, with a token."""
    hub = StubHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(trainables.hub, "_silent", False)
    monkeypatch.setattr(trainables.hub, "_ask_at", float("-inf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_stub")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
