"""Serves the page on loopback, with Starlette and uvicorn: checks each request, and sends changes of the sections.

A request needs three things. It needs the token, which is in the page's address and in no cookie, so that other pages
of the browser do not have it. Its Host must be this machine, so that no foreign name can point here. Its Origin must be
the page itself. It must arrive within seconds, and each connection carries one request.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from analysis.errors import StoreError
from sweeps.cli.watching.keys import Keys, new_word
from sweeps.cli.watching.page import Page
from sweeps.errors import reason

HOSTS = ("127.0.0.1", "localhost")
EVERY_S, SHARE = 1.0, 0.05
"""Seconds between two updates of numbers or figures, and the largest share of a core that each may take."""
ARRIVES_S, MOST_BYTES = 10.0, 100_000
"""Seconds that a request, and then its body, may take to arrive; and the largest body in bytes."""
_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "same-origin", "X-Content-Type-Options": "nosniff"}


class Impatient(H11Protocol):
    """A protocol that closes a connection if no complete request header arrives in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base has it
        super().connection_made(transport)
        self.loop.call_later(ARRIVES_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.scope is None and not self.transport.is_closing():  # set by a header
            self.transport.close()


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        HTTPException: it is too large, or does not arrive in time.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(ARRIVES_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BYTES:
                    raise HTTPException(413, f"the body is larger than {MOST_BYTES:,} bytes", _HEADERS)
    except TimeoutError as error:
        raise HTTPException(408, f"the body took longer than {ARRIVES_S:g} s", _HEADERS) from error
    return bytes(body)


class Guard:
    """Middleware that refuses a request without the token, or from a page of another origin."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        key = request.query_params.get("token", "").encode()
        app = self.app
        own_origin = f"http://{request.headers.get('host')}"
        if request.headers.get("origin", own_origin) != own_origin:
            app = PlainTextResponse("asked by a page of another origin", 403, _HEADERS)
        elif secrets.compare_digest(key, self.keys.once.encode()):
            self.keys.once = new_word()
            app = RedirectResponse(f"/?token={self.keys.token}", 303, _HEADERS)
        elif not secrets.compare_digest(key, self.keys.token.encode()):
            app = PlainTextResponse("no or wrong token; open the address that `sweeps watch` printed", 403, _HEADERS)
        await app(scope, receive, send)


class Feed:
    """Makes the sections of a page once for all browsers that show it, and only while some browser shows it."""

    def __init__(self, page: Page, over: Callable[[], bool]) -> None:
        self.page, self.over = page, over
        self.reading = asyncio.Lock()
        self._known: dict[Callable[[], dict[str, str]], dict[str, str]] = {}
        self._due: dict[Callable[[], dict[str, str]], float] = {}

    async def events(self) -> AsyncIterator[str]:
        """Yield server-sent events: a section's name, and its HTML as JSON, each time it has changed."""
        sent: dict[str, str] = {}
        last = False
        while not last:
            last = self.over()  # read before the sections, so that the last ones are complete
            for make in (self.page.text_sections, self.page.figures):
                for name, html in (await self._made(make, now=last)).items():
                    if sent.get(name) != html:
                        sent[name] = html
                        yield f"event: {name}\ndata: {json.dumps(html)}\n\n"
            until = time.monotonic() + EVERY_S
            while not (last or self.over() or time.monotonic() > until):
                await asyncio.sleep(0.1)
        yield "event: over\ndata: 0\n\n"

    async def _made(self, make: Callable[[], dict[str, str]], *, now: bool) -> dict[str, str]:
        async with self.reading:
            if now or time.monotonic() >= self._due.get(make, 0.0):
                before = time.process_time()
                try:
                    self._known[make] = await run_in_threadpool(make)
                finally:  # a failure must not take more than its share of a core either
                    self._due[make] = time.monotonic() + (time.process_time() - before) * (1 / SHARE - 1)
            return self._known[make]


def make_server(folder: Path, keys: Keys) -> uvicorn.Server:
    """Return a server for the page of a results folder. Its `run(sockets=[...])` serves until `should_exit` is set."""
    page = Page(folder)
    feed = Feed(page, lambda: server.should_exit)
    asking = asyncio.Lock()

    async def whole(request: Request) -> HTMLResponse:
        text, policy = page.whole(keys.token)
        return HTMLResponse(text, headers={**_HEADERS, "Content-Security-Policy": policy})

    async def events(request: Request) -> StreamingResponse:
        return StreamingResponse(feed.events(), headers=_HEADERS, media_type="text/event-stream")

    async def sql(request: Request) -> JSONResponse:
        query = (await read_body(request)).decode(errors="replace")
        async with asking:
            return JSONResponse(await run_in_threadpool(page.answer, query), headers=_HEADERS)

    async def report(request: Request) -> HTMLResponse | PlainTextResponse:
        try:
            async with feed.reading:
                return HTMLResponse(await run_in_threadpool(page.report), headers=_HEADERS)
        except StoreError as error:
            return PlainTextResponse(str(error), 404, _HEADERS)
        except Exception as error:  # noqa: BLE001  # the tables may contain anything
            cause = f"The report can't be made: {reason(error)}"
            return PlainTextResponse(cause, 500, _HEADERS)

    routes = [Route("/", whole), Route("/events", events), Route("/report", report)]
    app = Starlette(
        routes=[*routes, Route("/sql", sql, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, HOSTS, www_redirect=False), Middleware(Guard, keys)],
    )
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Impatient,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        headers=[("Connection", "close")],
    )
    server = uvicorn.Server(config)
    return server


def main() -> None:
    """Serve the page beside a run. Standard input has the keys, and ends when the run ends."""
    os.nice(10)
    folder, number = sys.argv[1:]
    server = make_server(Path(folder), Keys(*sys.stdin.readline().split()))

    def follow() -> None:
        while os.read(0, 1024):
            pass
        server.should_exit = True

    threading.Thread(target=follow, name="run", daemon=True).start()
    server.run(sockets=[socket.socket(fileno=int(number))])


if __name__ == "__main__":
    main()
