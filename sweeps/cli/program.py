"""The entry point of the program `sweeps`. It imports nothing, so that Ctrl-C works while the rest is loaded."""

from __future__ import annotations

import os
import sys

_READ = ("best", "compare", "query", "status", "tables")
"""Verbs that read tables and do not need pandas."""


def main() -> None:
    """Load and run the command line. Print an error if it is interrupted while it loads, or if output was lost."""
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
