"""The entry point of the program `sweeps`: imports nothing, so that Ctrl-C is answered while the rest is loaded."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it; interrupted before it listens, say so and leave with its exit code."""
    try:
        from sweeps.watch.streams import keep_streams

        keep_streams()
        from sweeps.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
