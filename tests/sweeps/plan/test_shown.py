"""What a notebook shows of a sweep file and of a plan."""

from __future__ import annotations

from sweeps import Plan, SweepSpec


def test_a_sweep_file_and_a_plan_show_themselves() -> None:
    spec = SweepSpec.parse(
        {
            "name": "shown",
            "model": {"id": "embedded:tiny-clip", "adapt": "vision"},
            "data": {"datasets": ["embedded:fashion-mnist"]},
            "budgets": {"lora_rank": [1, 4]},
            "methods": {"lora": {}, "vera": {}, "zero-shot": {}},
        }
    )
    assert "lora, vera, zero-shot" in spec._repr_html_() and "<th>" not in spec._repr_html_()
    plan = Plan.from_spec(spec)
    page = plan._repr_html_()
    assert page.count("<tr>") == 1 + len(plan.cells) and f"{plan.n_trials} trials" in page
    assert f"<td>{plan.cells[0].count:,}</td>" in page
    left_out = next(cell for cell in plan.cells if not cell.feasible)
    assert left_out.reason is not None and left_out.reason[:30] in page
