"""A results folder, opened: its tables whole (sealed parts and the journal's newer rows), and SQL over them."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import pyarrow as pa

from analysis.errors import DamagedPart, QueryError, StoreError, nearest
from analysis.format import percent
from analysis.sheets.html import ROWS, notebook_html, show_arrow_tables
from analysis.sheets.sheet import sheet_of
from analysis.store.journal import JOURNAL, Event, read_journal, rows_of
from analysis.store.remote import DECLARED, is_uri, local_copy
from analysis.store.schemas import SCHEMAS, TABLES
from analysis.store.sql.views import VIEWS
from analysis.store.tables import latest, part_names, scan_parts, to_table
from analysis.styles import PlaceNames, Style, example_counts, short_name, short_names, spare_styles, use_names
from trainables.digests import FileState

if TYPE_CHECKING:
    from analysis.store.sql.queries import Database

_SIZE = ("dataset", "train_size", "unit", "train_examples")

T = TypeVar("T")
Arguments = ParamSpec("Arguments")


@dataclass
class _Snapshot:
    state: object
    tables: dict[str, pa.Table]
    events: list[Event]
    own: int  # so many of them are the first folder's
    damaged: list[DamagedPart]
    styles: dict[str, Style]
    places: PlaceNames
    kept: dict[Hashable, Any] = field(default_factory=dict)
    database: Database | None = None


@dataclass
class Store:
    """One or several results folders, read as they are now. Reading is safe while a sweep writes to them.

    Attributes:
        paths: the results folders.
    """

    paths: tuple[Path, ...]
    _cache: _Snapshot | None = field(default=None, repr=False, compare=False)

    def _repr_html_(self) -> str:
        """Return the numbers of trials and the score of each cell as HTML. Notebooks call this."""
        counts = self.sql("select status, count(*) as n from trials group by all order by n desc").to_pylist()
        status_text = ", ".join(f"{row['n']:,} {row['status']}" for row in counts) or "none yet"
        scaling_rows = self.sql(
            "select method, reference, dataset, train_size, adapter_params, mean, low, high, n from scaling "
            "order by dataset, train_size, budget nulls last, mean desc"
        ).to_pylist()
        rows = [
            (
                row["method"],
                row["reference"] or "",
                short_name(row["dataset"]),
                row["train_size"],
                None if row["adapter_params"] is None else f"{row['adapter_params']:,.0f}",
                percent(row["mean"]),
                "" if row["low"] is None else f"[{percent(row['low'])}, {percent(row['high'])}]",
                row["n"],
            )
            for row in scaling_rows[:ROWS]
        ]
        columns = ("method", "budget", "data", "size", "parameters", "mean test score, %", "95 % interval", "seeds")
        title = f"Results of {', '.join(self.names)}; trials: {status_text}"
        return notebook_html(sheet_of(columns, rows, title), len(scaling_rows) - len(rows))

    @property
    def path(self) -> Path:
        """The first results folder."""
        return self.paths[0]

    def table(self, name: str) -> pa.Table:
        """Return a table or a view by name (docs/tables.md lists them).

        Raises:
            StoreError: the name is unknown, a journal is damaged before its end, or sweeps in two folders have the same
                name.
        """
        if name in SCHEMAS:
            return self._snapshot().tables[name]
        if name in VIEWS:
            return self.remember(("view", name), lambda: self.sql(f"select * from {name}"))  # noqa: S608  ours
        raise StoreError(f"unknown table {name!r}; {nearest(name, {*SCHEMAS, *VIEWS})}")

    def sql(self, query: str) -> pa.Table:
        """Run a read-only SQL query (DuckDB) over all tables and views. `queries.run_sql` says what it refuses."""
        from analysis.store.sql.queries import Database

        show_arrow_tables()
        snapshot = self._snapshot()
        if snapshot.database is None:
            snapshot.database = Database(snapshot.tables)
        try:
            return snapshot.database.ask(query)
        except QueryError:
            snapshot.database = None
            raise

    def sql_apart(self, query: str) -> pa.Table:
        """Run a query from outside in a separate process (`sql.process`), which enforces limits of time and memory."""
        from analysis.store.sql.process import run_sql_apart

        return run_sql_apart(self._snapshot().tables, query)

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the cached result of `make` under `key`. It is made again if the folder has changed.

        Callers must not change the result.
        """
        results = self._snapshot().kept
        if key not in results:
            results[key] = make()
        result: T = results[key]
        return result

    def events(self, kind: str | None = None) -> list[Event]:
        """Return the journal's events in order, all or of one kind.

        The kinds are 'sweep', 'ask', 'report', 'finish', 'choose' and 'declare'. A copied folder has no journal; its
        'declare' events come from `declared.json`.
        """
        return [e for e in self._snapshot().events if kind is None or e["ev"] == kind]

    def declared(self) -> list[Event]:
        """Return the `declare` events of the first folder."""
        snapshot = self._snapshot()
        return [e for e in snapshot.events[: snapshot.own] if e["ev"] == "declare"]

    @property
    def damaged(self) -> tuple[DamagedPart, ...]:
        """Part files that cannot be read. The tables still have those of their rows that the journal has."""
        return tuple(self._snapshot().damaged)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sweeps in the store, or the folders' names if there is none."""
        # an imported folder's event has the names of all its sweeps as one text, so they come from the tables
        sweep_events = (e for e in self.events("sweep") if "imported from" not in e)
        all_names = [e.get("name") or e.get("sweep") for e in sweep_events]
        all_names += self.table("cells").column("sweep").unique().to_pylist()
        named = tuple(dict.fromkeys(str(name) for name in all_names if isinstance(name, str)))
        return named or tuple(path.name for path in self.paths)

    def spec(self) -> dict[str, Any] | None:
        """Return the specification of the first sweep from `sweep.json`, else `spec.json`; None if both are missing.

        A `sweep.json` of another sweep is ignored.
        """
        sweep_file, spec_file = (_read_json(self.path / name) for name in ("sweep.json", "spec.json"))
        if sweep_file is None or spec_file is None:
            return sweep_file or spec_file
        name, spec_name = sweep_file.get("name"), _identity(spec_file).get("name")
        of_another = None not in (name, spec_name) and name != spec_name
        return spec_file if of_another else sweep_file

    @property
    def protocol(self) -> str:
        """'standard', or 'paper': fixed published rates, no tuning, and training on validation images as well."""
        return str(self.stored().get("protocol", "standard"))

    def stored(self) -> dict[str, Any]:
        """Return the settings of the first sweep that must not change, from `spec.json` (else from `sweep.json`).

        A run refuses a `spec.json` of another sweep. It never reads `sweep.json`, which may be of any sweep.
        """
        return _identity(_read_json(self.path / "spec.json") or self.spec() or {})

    def _snapshot(self) -> _Snapshot:
        state = [_state(path) for path in self.paths]
        if self._cache is None or self._cache.state != state:
            self._cache = self._read(state)
        use_names(self._cache.styles, self._cache.places)
        return self._cache

    def _read(self, state: object) -> _Snapshot:
        parts: dict[str, list[pa.Table]] = {name: [] for name in SCHEMAS}
        damaged: list[DamagedPart] = []
        everything: list[Event] = []
        homes: dict[str, Path] = {}
        first_count = 0
        for path in self.paths:
            # the journal first: a row sealed between the two readings is then seen twice, not missed
            events = read_journal(path / JOURNAL).events
            newer = rows_of(events)
            everything += events
            everything += () if any(e["ev"] == "declare" for e in events) else declarations(path)
            if path == self.paths[0]:
                first_count = len(everything)
            for name in SCHEMAS:
                sealed, bad = scan_parts(path, name)
                rows = _named(newer.get(name, []), path, events)
                unsealed = _unsealed(rows, sealed, name)
                parts[name].append(latest(name, [sealed, to_table(name, unsealed)]) if unsealed else sealed)
                damaged += bad
            for sweep in dict.fromkeys(parts["cells"][-1]["sweep"].to_pylist()):
                if (home := homes.setdefault(sweep, path)) != path:
                    raise StoreError(
                        f"{home} and {path} both hold a sweep named {sweep!r}, whose rows would replace each other; "
                        "give one of them another `name` in its sweep file, run or import it anew, or open one alone"
                    )
        tables = {name: of[0] if len(of) == 1 else latest(name, of) for name, of in parts.items()}
        named = tables["cells"].select(["method", "title"]).to_pylist()
        titles = {row["method"]: row["title"] for row in sorted(named, key=lambda row: row["title"] or "")}
        size_columns = [tables["trials"].column(name).to_pylist() for name in _SIZE]  # `group_by` of Arrow loads pandas
        sizes = [dict(zip(_SIZE, row, strict=True)) for row in dict.fromkeys(zip(*size_columns, strict=True))]
        named_sets = short_names(dict.fromkeys(tables["cells"]["dataset"].to_pylist()))
        places = PlaceNames(named_sets, example_counts(sizes))
        return _Snapshot(state, tables, everything, first_count, damaged, spare_styles(titles), places)


@dataclass
class _Part(Store):
    """Some cells of a store, as they were when this part was made."""

    def _snapshot(self) -> _Snapshot:
        if self._cache is None:
            raise StoreError(f"{self.path}: a part of a store was made without its tables")
        return self._cache


def part_of(store: Store, cells: Collection[tuple[str, str]]) -> Store:
    """Return the store with only these cells (sweep, cell id). Tables without a column `cell_id` stay whole."""
    snapshot, wanted_cells = store._snapshot(), set(cells)
    tables = {}
    for name, table in snapshot.tables.items():
        tables[name] = table
        if "cell_id" in table.schema.names:
            named = zip(table["sweep"].to_pylist(), table["cell_id"].to_pylist(), strict=True)
            tables[name] = table.filter(pa.array([cell in wanted_cells for cell in named], pa.bool_()))
    return _Part(store.paths, replace(snapshot, tables=tables, kept={}, database=None))


def remembered(make: Callable[Concatenate[Store, Arguments], T]) -> Callable[Concatenate[Store, Arguments], T]:
    """Decorate a function of a store and hashable arguments, so that its result is cached until the folder changes.

    Callers must not change the result.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def remembering(store: Store, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> T:
        bound = signature.bind(store, *args, **kwargs)
        bound.apply_defaults()
        key = (make.__module__, make.__qualname__, *tuple(bound.arguments.values())[1:])
        return store.remember(key, lambda: make(store, *args, **kwargs))

    return remembering


def declarations(path: Path) -> list[Event]:
    """Return the `declare` events in `declared.json` of a results folder, or [] if there is no such file.

    Raises:
        StoreError: the file is damaged.
    """
    file = path / DECLARED
    try:
        entries = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        needed = ("name", "seeds", "max_seeds", "margin", "scored")
        return [{**event, **{key: event[key] for key in needed}, "ev": "declare"} for event in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        rule = "restore it from a copy, or remove it: seeds added since then count as declared at first"
        raise StoreError(f"{file}: no JSON list of declarations ({error}); {rule}") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no such file or it holds no object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not a JSON file ({error})") from error
    return document if isinstance(document, dict) else None


def _identity(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a specification that identifies the sweep. It works for `spec.json` and `sweep.json`."""
    identity = spec.get("identity")
    return identity if isinstance(identity, dict) else spec


def _named(rows: list[dict[str, Any]], path: Path, events: tuple[Event, ...]) -> list[dict[str, Any]]:
    """Return rows with the name of their sweep, which a journal may leave out."""
    if all("sweep" in row for row in rows):
        return rows
    name = next((e["name"] for e in events if e["ev"] == "sweep" and isinstance(e.get("name"), str)), path.name)
    return [{"sweep": name, **row} for row in rows]


def _unsealed(rows: list[dict[str, Any]], sealed: pa.Table, name: str) -> list[dict[str, Any]]:
    """Return the rows of a journal that the parts do not have. A sealed row is never written again."""
    key = TABLES[name].key
    sealed_keys = set(zip(*(sealed.column(column).to_pylist() for column in key), strict=True))
    return [row for row in rows if tuple(row.get(column) for column in key) not in sealed_keys]


def _state(path: Path) -> tuple[FileState | None, list[str]]:
    """Return what differs once a results folder has changed."""
    return FileState.at(path / JOURNAL), [part for name in SCHEMAS for part in part_names(path, name)]


def open_store(path: str | Path, *more: str | Path) -> Store:
    """Open one results folder, or several as one store. The column `sweep` says which rows are of which sweep.

    A folder may be a URI that pyarrow can read (`sweeps run --upload`). New files there are first copied into a cache.
    Raises StoreError if a folder does not exist or holds no sweep; the error names the nearest one that does.
    """
    paths = tuple(local_copy(str(p)) if is_uri(p) else Path(p) for p in (path, *more))
    for folder in paths:
        if (folder / JOURNAL).is_file() or (folder / "tables").is_dir():
            continue
        siblings = folder.parent.iterdir() if folder.parent.is_dir() else iter(())
        neighbours = [str(p) for p in siblings if (p / JOURNAL).is_file()]
        reason = "holds no sweep (neither journal.jsonl nor tables/)" if folder.is_dir() else "does not exist"
        raise StoreError(f"results folder {folder} {reason}; {nearest(str(folder), neighbours)}")
    return Store(paths)
