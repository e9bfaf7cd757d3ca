"""The verb `watch`, and the same page beside a run, in another process that ends with the run."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.options import Json, Set, Source, folder_of
from sweeps.cli.printing import emit, err, out
from sweeps.cli.watching.keys import Keys
from sweeps.errors import Problem, SpecError

if TYPE_CHECKING:
    from rich.console import Console

Browser = Annotated[bool, typer.Option(help="Open the web page in a browser, if there is one.")]
_ENDS_S = 30.0
"""Seconds that the page gets to send the last changes of a run."""


def watch(
    source: Source,
    port: Annotated[int, typer.Option(help="Port of the page on this machine; 0: any free port.")] = 0,
    browser: Browser = True,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Show a sweep on a web page of this machine, while it runs or afterwards. Ctrl-C ends the page, not the sweep."""
    from sweeps.cli.watching.server import make_server

    folder, keys = folder_of(source, overrides), Keys()
    with _listening(port) as place:
        address = _address(place, keys.token)
        emit(as_json, lambda: {"folder": str(folder), "address": address}, lambda: _announce(place, keys, browser, out))
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            make_server(folder, keys).run(sockets=[place])


@contextlib.contextmanager
def beside(folder: Path, browser: bool) -> Iterator[None]:
    """Serve the page in another process during the block. The process ends with this one, even if that is killed."""
    keys = Keys()
    with _listening(0) as place:
        command = [sys.executable, "-m", "sweeps.cli.watching.server", str(folder.absolute()), str(place.fileno())]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[place.fileno()],
            process_group=0,  # Ctrl-C must reach only the driver
        )
        _announce(place, keys, browser, err)
    assert process.stdin is not None
    try:
        with contextlib.suppress(OSError):  # the page may have ended by itself; the run goes on
            process.stdin.write(f"{keys.token} {keys.once}\n".encode())
            process.stdin.flush()
        yield
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            if code:
                err.print(f"the page of --watch ended with code {code}; `sweeps watch` shows why", style="yellow")


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        problem = Problem("--port", port, f"can't be listened on ({error})", "0: any that is free")
        raise SpecError([problem]) from error


def _address(place: socket.socket, word: str) -> str:
    return f"http://127.0.0.1:{place.getsockname()[1]}/?token={word}"


def _announce(place: socket.socket, keys: Keys, browser: bool, console: Console) -> None:
    """Print the page's address, and open it in a graphical browser if the output goes to a terminal."""
    import webbrowser

    console.print(f"watch at {_address(place, keys.token)}")
    with contextlib.suppress(webbrowser.Error):
        if browser and console.file.isatty() and type(webbrowser.get()) is not webbrowser.GenericBrowser:
            webbrowser.open(_address(place, keys.once))
            console.print("opened in your browser; --no-browser prints the address alone")
