"""What the verbs that answer at once do not load, and do not do twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analysis import open_store
from analysis.store.sql import queries
from tests.analysis.synthetic import make_results
from tests.support import ROOT

_LOADED = """
import contextlib, io, sys
from sweeps.cli.program import main
sys.argv = ["sweeps", *sys.argv[1:]]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print(*sys.modules)
"""
_HEAVY = {"torch", "ray", "pandas", "matplotlib", "scipy", "optuna", "transformers"}


@pytest.mark.parametrize(
    ("verb", "none_of"),
    [
        (["--version"], _HEAVY | {"pyarrow", "duckdb", "pydantic", "psutil"}),
        (["query", "FOLDER", "select count(*) from trials"], _HEAVY | {"duckdb", "pyarrow.dataset"}),
        (["query", "FOLDER", "trials"], _HEAVY | {"duckdb", "pyarrow.dataset"}),
        (["status", "FOLDER"], _HEAVY | {"pyarrow.dataset"}),
        (["best", "FOLDER"], _HEAVY - {"scipy"} | {"pyarrow.dataset", "scipy.stats", "scipy.optimize"}),
    ],
)
def test_a_quick_verb_loads_little(tmp_path: Path, verb: list[str], none_of: set[str]) -> None:
    """Arrow loads pandas at its first list, and its data sets with `read_table`: each took longer than the query."""
    folder = str(make_results(tmp_path / "made", trials=verb[0] == "best"))
    words = [word.replace("FOLDER", folder) for word in verb]
    done = subprocess.run([sys.executable, "-c", _LOADED, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert none_of.isdisjoint(done.stdout.split()), none_of & set(done.stdout.split())


def test_queries_of_one_folder_share_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the folder changes."""
    made: list[object] = []
    connect = queries.connect
    monkeypatch.setattr(queries, "connect", lambda *given: made.append(given) or connect(*given))
    folder = make_results(tmp_path / "made", trials=False)
    store = open_store(folder)
    for query in ("select count(*) from best", "select * from scaling", "select count(*) from coverage"):
        store.sql(query)
    store.table("signs")
    assert len(made) == 1
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write('{"ev": "lost", "at": "2026-01-01T00:00:00+00:00", "reason": "x"}\n')
    store.sql("select 1")
    assert len(made) == 2


def test_torch_loads_where_pandas_is_spared() -> None:
    """A sweep file in the place of a folder loads torch, which asks where pandas is without importing it."""
    program = """
from sweeps.cli.program import main
import sys
sys.argv = ["sweeps", "best", "examples/quickstart.toml", "--set", "output='/no/such/folder'"]
try:
    main()
finally:
    import torch._dynamo
    print("pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "error: results = '/no/such/folder" in done.stderr
    assert (done.returncode, done.stdout) == (2, "False\n")
