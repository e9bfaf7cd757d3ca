"""The entry point of the program `sweeps`: imports nothing, so that Ctrl-C is answered while the rest is loaded."""

from __future__ import annotations

import os
import sys

_READ = ("best", "compare", "query", "status", "tables")
"""Verbs that read tables, and whose libraries need no pandas."""


def main() -> None:
    """Load the command line and run it; say so where it is interrupted before it listens, or its output is lost."""
    try:
        from sweeps.watch.streams import keep_streams, lost_output

        keep_streams()
        if len(sys.argv) > 1 and sys.argv[1] in _READ:
            from analysis.store.sql.no_pandas import spare_pandas

            spare_pandas()
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's small matrices gain nothing by more
        from sweeps.cli.main import main as run

        try:
            run()
        except SystemExit as end:
            if (lost := lost_output()) is None:
                raise
            print(f"error: standard output could not be written: {lost}", file=sys.stderr)
            sys.exit(end.code or 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
