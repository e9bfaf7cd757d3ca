"""What each method and budget cost, and how long all runs took."""

from __future__ import annotations

from analysis.findings.finding import Finding
from analysis.format import Row, duration, moment, plural
from analysis.sheets.columns import BUDGET, METHOD, PARAMETERS
from analysis.sheets.sheet import Column, Sheet, number
from analysis.store.sql.views import SECONDS
from analysis.store.store import Store
from analysis.styles import style

MORE_COST = "all runs, speed and storage"


def cost_sheet(store: Store) -> Sheet:
    """Return the table of what each method and budget cost."""
    rows = store.table("cost").to_pylist()
    rows.sort(key=lambda r: (r["sweep"], style(r["method"]).order, r["method"], r["adapter_params"] or 0))
    sweep = Column("sweep", lambda r: str(r["sweep"]), label=True, beneath=True)
    columns = [
        *([sweep] if len({r["sweep"] for r in rows}) > 1 else []),
        METHOD,
        BUDGET,
        PARAMETERS,
        number("time of a run", "seconds_per_trial", duration),
        number("of it training", "seconds_train", duration),
        number("peak memory, MiB", "peak_memory_bytes", lambda v: "" if v is None else f"{v / 2**20:,.0f}"),
        number("runs", "attempts", group=MORE_COST),
        number("time of all runs", "hours", lambda v: duration(None if v is None else 3600 * v), MORE_COST),
        number("of it neither training nor evaluation", "seconds_overhead", duration, MORE_COST),
        number("examples per second", "samples_per_second", lambda v: "" if v is None else f"{v:,.0f}", MORE_COST),
        number("stored bytes", "stored_bytes", group=MORE_COST),
    ]
    note = (
        "Times of a run are means over finished runs. Stored bytes are those of the frozen bases and the stored "
        "starting points of a method."
    )
    return Sheet("cost", "What each method cost", columns, rows, note)


def cost_says(store: Store) -> list[str]:
    """Say how long the runs took."""
    runs = store.table("trials").num_rows
    return [_cost_text(_totals(store), runs)] if runs else []


def _totals(store: Store) -> Row:
    """Add up the time of all runs: in total, of failed runs, and per finished run outside training and evaluation."""
    totals = store.sql(f"""
        select sum({SECONDS}) as seconds, min(started_at) as first, max(ended_at) as last,
               sum({SECONDS}) filter (status = 'failed') as seconds_failed,
               sum({SECONDS} - coalesce(seconds_train, 0) - coalesce(seconds_eval, 0))
                 filter (status = 'finished') / nullif(count(*) filter (status = 'finished'), 0) as overhead
        from trials
    """)  # noqa: S608  ours
    return dict(totals.to_pylist()[0])


def _cost_text(r: Row, attempts: int) -> str:
    """Say in sentences how long the runs took, from `_totals`."""
    sentences = [f"{plural(attempts, 'run')} took {duration(r['seconds'])}, added up over all runs"]
    if r["first"] is not None and r["last"] is not None:
        sentences[0] += f", between {moment(r['first'])} and {moment(r['last'])}"
    if r["overhead"] is not None:
        sentences.append(
            f"A finished run spent {duration(r['overhead'])} on average on neither training nor evaluation"
        )
    if r["seconds_failed"]:
        sentences.append(f"Failed runs took {duration(r['seconds_failed'])} of the total")
    return "".join(f"{sentence}. " for sentence in sentences).strip()


FINDING = Finding("cost", ("cost",), lambda store, _: [cost_sheet(store)], says=cost_says)
