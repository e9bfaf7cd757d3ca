"""The page of a results folder, served in this process, and asked as a browser or a stranger would."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.cli.watching.keys import Keys
from sweeps.cli.watching.server import make_server
from tests.support import wait_for


class Served:
    """The page under its address. `keys`: what opens it."""

    @classmethod
    def said(cls, line: str) -> Served:
        """The page of the line that `sweeps watch` prints."""
        found = re.fullmatch(r"watch at http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32})\n", line)
        assert found, line
        return cls(int(found[1]), Keys(found[2]))

    def __init__(self, port: int, keys: Keys) -> None:
        self.port, self.keys = port, keys
        self.address = f"http://127.0.0.1:{port}/?token={keys.token}"

    def connect(
        self,
        path: str,
        token: str | None = None,
        host: str | None = None,
        body: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A request, with the page's own token and host unless others are given, and its answer, not yet read."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=240)
        headers = {"Host": host or f"127.0.0.1:{self.port}", **(headers or {})}
        method = "GET" if body is None else "POST"
        line.request(method, f"{path}?token={self.keys.token if token is None else token}", body, headers)
        return line, line.getresponse()

    def ask(self, path: str, **how: Any) -> tuple[int, http.client.HTTPMessage, str]:
        """Status, headers and text of the answer to a request."""
        line, answer = self.connect(path, **how)
        with contextlib.closing(line), contextlib.closing(answer):  # a line that is to close is the answer's
            return answer.status, answer.headers, answer.read().decode()

    def listens(self) -> bool:
        """Whether the address is still listened on."""
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", self.port)) == 0

    def sql(self, query: str) -> dict[str, object]:
        return dict(json.loads(self.ask("/sql", body=query)[2]))

    @contextlib.contextmanager
    def events(self) -> Iterator[Iterator[tuple[str, str]]]:
        """Sections as they are sent: name and HTML."""
        line, answer = self.connect("/events")

        def read() -> Iterator[tuple[str, str]]:
            while name := answer.readline().decode().removeprefix("event: ").strip():
                html = json.loads(answer.readline().decode().removeprefix("data: "))
                assert answer.readline() == b"\n"
                yield name, str(html)

        with contextlib.closing(line), contextlib.closing(answer):
            yield read()

    def sections(self) -> dict[str, str]:
        """All sections as they are now."""
        found: dict[str, str] = {}
        with self.events() as events:
            for name, html in events:
                found[name] = html
                if name in ("figures", "over"):
                    break
        return found


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Served]:
    keys = Keys()
    server = make_server(folder, keys)
    with socket.create_server(("127.0.0.1", 0)) as place:
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            wait_for(lambda: server.started, "the server")
            yield Served(place.getsockname()[1], keys)
        finally:
            server.should_exit = True
            thread.join()
