"""The results table as Markdown and LaTeX, for papers and README files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from analysis.conclusions import points
from analysis.methods import place_text

Row = dict[str, Any]

_TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
_TEX |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "\N{MINUS SIGN}": "$-$"}


def markdown(results: pa.Table) -> str:
    """`console.results_table` as a Markdown table; infeasible cells are left out."""
    header, rows, numeric = _cells(results)
    rule = [("---:" if right else "---") for right in numeric]
    lines = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(results: pa.Table) -> str:
    """`console.results_table` as a LaTeX tabular with booktabs rules; infeasible cells are left out."""
    header, rows, numeric = _cells(results)
    lines = [r"\begin{tabular}{" + "".join("r" if right else "l" for right in numeric) + "}", r"\toprule"]
    lines += [" & ".join(map(_tex, header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_tex, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _cells(results: pa.Table) -> tuple[list[str], list[list[str]], list[bool]]:
    rows = [r for r in results.to_pylist() if not (r["note"] or "").startswith("infeasible")]
    header = ["method", "budget", "parameters", "accuracy, % [95 %]", "seeds", "vs LoRA, points [95 %]", "verdict"]
    numeric = [False, False, True, True, True, True, False]
    cells = [_row(r) for r in rows]
    if len({(r["sweep"], r["dataset"], r["train_size"]) for r in rows}) > 1:
        header, numeric = ["data", *header], [False, *numeric]
        cells = [[_place(r), *row] for r, row in zip(rows, cells, strict=True)]
    return header, cells, numeric


def _place(row: Row) -> str:
    return place_text(row["dataset"], row["train_size"])


def _row(r: Row) -> list[str]:
    return [
        r["name"],
        r["reference"] or "",
        "" if r["adapter_params"] is None else f"{r['adapter_params']:,}",
        _with_interval([r["mean"], r["low"], r["high"]], sign=False),
        str(r["n"]),
        _with_interval([r["difference"], r["difference_low"], r["difference_high"]], sign=True),
        r["verdict"] or r["note"] or "",
    ]


def _with_interval(values: Sequence[float | None], *, sign: bool) -> str:
    shown = [points(v, sign=sign) for v in values if v is not None]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if len(shown) == 3 else "".join(shown[:1])
