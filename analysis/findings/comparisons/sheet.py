"""The table of comparisons with a baseline, whose columns the one with full fine-tuning shares."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.findings.shared import BUDGETS, LONG, PAIRS, VERDICT, over_other_datasets
from analysis.format import Row, change_text, end_of_interval, level_text, p_text, percent, points, with_interval
from analysis.sheets.columns import METHOD, columns_of
from analysis.sheets.sheet import Column, Sheet, number
from analysis.store.store import Store
from analysis.styles import style
from analysis.verdict.comparisons import comparisons
from analysis.verdict.looks import level
from analysis.verdict.power import PLANTED
from analysis.verdict.question import question, question_against
from analysis.verdict.verdicts import LATER, LATER_MEANS, meanings, verdict_text

TESTS = "tests"
DETECTABLE = "what these seeds can detect"
EFFECT = "size of the effect"


def comparisons_sheet(store: Store, baseline: str | None = None) -> Sheet:
    """Return the table of comparisons of each method with a baseline at the same budget."""
    baseline = baseline or question(store).baseline
    rows = comparisons(store, baseline).to_pylist()
    return Sheet(
        "comparisons",
        f"Each method against {style(baseline).name} at the same budget",
        difference_columns(rows, ratio=True),
        rows,
        _reading(rows, level(store), question_against(store, baseline).focus),
        _how_to_read(rows),
        strong=lambda r: r["reference"] is None,
        folded=len(rows) > LONG,
    )


def _how_to_read(rows: Sequence[Row]) -> str:
    """Say what the verdicts of the rows mean, and why an interval may say otherwise."""
    verdicts = {r["verdict"] for r in rows}
    margin = next((r["margin"] for r in rows if r["margin"] is not None), None)
    sentences = meanings(verdicts, margin)
    if verdicts:
        sentences.append("Verdicts and intervals are corrected for multiple comparisons.")
    if any(r.get("added") for r in rows):
        sentences.append(f"{LATER_MEANS}.")
    return " ".join(sentences)


def _reading(rows: Sequence[Row], alpha: float, focus: str | None) -> str:
    """Explain how the comparisons were computed. `focus`: the method in question, if the sweep has one."""
    note = (
        "Differences are paired by seed. Interval, p and verdict account for the choice of learning rate: if the "
        f"tuning were repeated, another rate might be chosen. {_families(rows, focus)}The tests that are corrected "
        f"together share a level of {level_text(alpha)}. Each interval has the level at which the test of its row was "
        "decided, so it leaves out zero exactly if the verdict is higher or lower. The pointwise interval is the 95 % "
        "interval of the row alone. "
        "The verdict if the rates are fixed takes the chosen learning rates as given. Effect is Hedges' g, also at "
        "these rates: the mean of the paired differences divided by their standard deviation, corrected for few seeds. "
        f"Power is the chance that this comparison finds a true difference of {100 * PLANTED:g} points. The next "
        "column is the number of seeds that would find it in four of five studies (empty: over 1,000). Detectable is "
        "the smallest true difference that these seeds find in four of five studies. Power, seeds and detectable come "
        "from simulations with the variances seen here. "
        "The ratio divides the parameters of the method by those of the baseline."
    )
    tests = list(dict.fromkeys(r["test"] for r in rows if r["n_datasets"] > 1))
    if tests:
        note += f" Rows over data sets use the budgets that every data set has ({'; '.join(tests)}). They hold for "
        note += "these data sets only, unless the row says what is expected on other data sets."
    return note


def _families(rows: Sequence[Row], focus: str | None) -> str:
    """Return sentences on which rows are corrected together by Holm's method."""
    first = [r for r in rows if not r.get("added")]
    matched = any(r["params_ratio"] is not None for r in first)  # else the baseline has no budget
    mine = [r for r in first if r["method"] == focus] if matched else []
    sentences = []
    if mine:
        half = any(r["reference"] is None and not over_other_datasets(r) for r in mine)
        mean = ", of which its mean over all budgets has half of the level at the first" if half else ""
        sentences.append(f"The rows of {style(mine[0]['method']).name} are corrected together by Holm's steps{mean}.")
    if len(mine) < len(first):
        which = "all other methods" if mine else "all methods"
        means = not mine and any(
            r["reference"] is None and r["n_budgets"] and not over_other_datasets(r) for r in first
        )
        share = "'s steps, of which the means over all budgets share half of the level at the first" if means else ""
        sentences.append(f"The rows of {which} are corrected together by Holm{share}.")
    if len(first) < len(rows):
        sentences.append(f"So are the rows marked{LATER}, apart from the others.")
    return "".join(f"{sentence} " for sentence in sentences)


def difference_columns(rows: Sequence[Row], *, ratio: bool) -> list[Column]:
    return columns_of(
        rows,
        METHOD,
        BUDGETS,
        Column("difference, points [corrected]", change_text, "number"),
        VERDICT,
        PAIRS,
        Column("pointwise 95 % interval, points", _pointwise, "number", TESTS),
        number("p", "p", p_text, TESTS),
        number("p, corrected (Holm)", "p_holm", p_text, TESTS),
        Column("verdict if the rates are fixed", lambda r: verdict_text(r["verdict_given_rates"]), "verdict", TESTS),
        Column("effect [95 %]", _effect, "number", EFFECT),
        number(
            f"power for {100 * PLANTED:g} points",
            "power",
            lambda v: "" if v is None else f"{100 * v:.0f} %",
            DETECTABLE,
        ),
        number(f"seeds for {100 * PLANTED:g} points", "seeds_needed", group=DETECTABLE),
        number("detectable, points", "detectable", _detectable, DETECTABLE),
        *([number("parameters, ratio", "params_ratio", _ratio, EFFECT)] if ratio else []),
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _pointwise(r: Row) -> str:
    ends = [end_of_interval(r[k]) for k in ("low_pointwise", "high_pointwise")]
    return f"[{', '.join(ends)}]" if all(ends) else ""


def _detectable(fraction: float | None) -> str:
    """Return a detectable difference in points; no difference of scores can be larger than 100."""
    return "over 100" if fraction is not None and fraction > 1 else percent(fraction)


def _effect(r: Row) -> str:
    if r["effect"] is None:
        return ""
    return with_interval(*(points(r[k] / 100).removeprefix("+") for k in ("effect", "effect_low", "effect_high")))
