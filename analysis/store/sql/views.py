"""The named views over the results tables, each with its SQL and the meaning of its rows.

Score intervals are 95 % t intervals over seeds. `queries` registers the table `t95(df, t)` of critical values. Two
sweeps may use the same ids, so every join also uses `sweep`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.store.slot_kinds import SlotKind

T95 = "t95"
"""Name of the table with the critical values of Student's t for 95 % intervals."""
NO_SUCH_TABLE = re.compile(r"Table with name \"?([^\s\"!]+)")
"""Finds DuckDB's message about a table that does not exist. The group is the name of the table."""
FEW = 3
"""With fewer finished points, the best one says little."""
SHARE = 0.75
"""If a smaller share of the tried points has finished, the best one says little."""
PLANNED = "t.stage = 'TUNE' and t.origin is distinct from 'widened'"
"""SQL for: trial `t` is one of the planned points, and not past the edge of the range."""
RISING = 0.005
"""Half a point. If the fitted peak is higher than the best rate by more, a better rate may lie between those tried."""


@dataclass(frozen=True)
class View:
    """A view: its name, one sentence on its rows, and the SELECT that defines it."""

    name: str
    doc: str
    sql: str


_LISTED = """(k.seeds is null or
              list_contains(string_split(k.seeds, ' '), concat_ws('/', t.data_seed, t.init_seed, t.basis_seed)))"""
"""SQL for: the sweep file has the seed of trial `t` of cell `k`."""
_POINT = r"regexp_replace(hyperparameters, '\.0([,}])', '\1', 'g') as hyperparameters"
"""SQL that writes whole numbers in one way, because folders of version 0.1.0 may have 0 and 0.0 for one point."""
_FINITE = ", ".join(f"case when isfinite({name}) then {name} end as {name}" for name in ("val_score", "test_score"))
"""SQL that makes scores null if they are not finite. A foreign part may have NaN, which SQL takes as the largest."""
_TRIAL = f"* replace ({_POINT}, {_FINITE})"
COUNTS = f"""{_LISTED}
          and (t.lr is null or c.lr is null
               or (abs(t.lr - c.lr) <= 1e-9 * c.lr and t.hyperparameters is not distinct from c.hyperparameters))"""
"""SQL for: trial `t` has such a seed, and is at the latest choice `c` of its cell if the cell has one."""

_ALLOWED = f"""(t.slot < k.tune_points - coalesce(k.tune_refined, 0) or
           (t.slot >= {SlotKind.WIDENED.value} and t.slot < {SlotKind.REFINED.value} + coalesce(k.tune_refined, 0)))"""
"""SQL for: trial `t` of cell `k` has a slot number of `SlotKind.within`, or of a rate past the edge of the range. The
numbers of re-runs may be larger. So a rate can be chosen if one of its trials has such a number."""

SECONDS = """(case when seconds_total is not null then
              greatest(seconds_total,
                       coalesce(seconds_setup, 0) + coalesce(seconds_train, 0) + coalesce(seconds_eval, 0)) end)"""
"""SQL for the seconds of a whole attempt. If an attempt was resumed, `seconds_total` only counts its last lease, while
the seconds of its parts count all leases.
"""

_ALL = (
    View(
        "last_attempts",
        "One row per trial: its last attempt, as in `trials`.",
        f"""
        select {_TRIAL} from trials
        qualify row_number() over (partition by sweep, trial_id order by attempt desc) = 1
        """,  # noqa: S608  ours
    ),
    View(
        "searched",
        "One row per TUNE trial whose learning rate can be chosen: its last attempt. If you lower the number of rates "
        "after a cell has tried more of them, the last ones can no longer be chosen, and this view leaves them out.",
        f"""
        select t.* from last_attempts t left join cells k using (sweep, cell_id)
        where t.stage = 'TUNE' and t.lr is not null
        qualify k.tune_points is null or bool_or({_ALLOWED}) over
          (partition by t.sweep, t.cell_id, t.lr, t.hyperparameters)
        """,  # noqa: S608  ours
    ),
    View(
        "chosen",
        "One row per tuned cell: its latest choice, as in `choices`.",
        f"""
        select * replace ({_POINT}) from choices
        qualify row_number() over (partition by sweep, cell_id
                                   order by sequence desc nulls last, chosen_at desc nulls last, n_trials desc) = 1
        """,  # noqa: S608  ours
    ),
    View(
        "confirmed",
        "The trials that results are made of: finished CONFIRM trials at the cell's latest choice of rate, or without "
        "one, on the seeds that the sweep file has. The columns are those of `trials`.",
        f"""
        select t.* from (select {_TRIAL} from trials) t
        left join chosen c using (sweep, cell_id) left join cells k using (sweep, cell_id)
        where t.stage = 'CONFIRM' and t.status = 'finished' and {COUNTS}
        qualify row_number() over (partition by t.sweep, t.trial_id order by t.attempt desc) = 1
        """,  # noqa: S608  ours
    ),
    View(
        "failed",
        "CONFIRM trials that should have a test score and have none: they failed at every attempt, or their score was "
        "NaN or infinite. Only trials at the chosen learning rate, on seeds that the sweep file has.",
        f"""
        select t.* from last_attempts t
        left join chosen c using (sweep, cell_id) left join cells k using (sweep, cell_id)
        where t.stage = 'CONFIRM' and {COUNTS}
          and (t.status = 'failed' or (t.status = 'finished' and t.test_score is null))
        """,  # noqa: S608  ours
    ),
    View(
        "superseded",
        "Finished CONFIRM trials whose cell later chose another rate, or whose seed was taken out: looked at, and not "
        "counted.",
        f"""
        select t.* from last_attempts t
        left join chosen c using (sweep, cell_id) left join cells k using (sweep, cell_id)
        where t.stage = 'CONFIRM' and t.status = 'finished'
          and (not {_LISTED} or abs(t.lr - c.lr) > 1e-9 * c.lr
               or (c.lr is not null and t.hyperparameters is distinct from c.hyperparameters))
        """,  # noqa: S608  ours
    ),
    View(
        "scaling",
        "One row per confirmed cell: the number of seeds (`n`), the mean test score with its 95 % t interval over "
        "seeds (null if there is one seed, or if all scores are equal), and the parameters as built.",
        """
        select s.sweep, s.model, s.dataset, s.train_size, s.method, s.reference, s.budget, s.cell_id,
               s.adapter_params, s.lr, s.n, s.mean, s.sd,
               s.mean - t.t * nullif(s.sd, 0) / sqrt(s.n) as low, s.mean + t.t * nullif(s.sd, 0) / sqrt(s.n) as high
        from (
          select sweep, model, dataset, train_size, method, reference, budget, cell_id,
                 max(adapter_params) as adapter_params, max(lr) as lr, count(test_score) as n,
                 avg(test_score) as mean, round(stddev_samp(test_score), 12) as sd
          from confirmed where test_score is not null group by all
        ) s left join t95 t on t.df = s.n - 1
        order by s.sweep, s.model, s.dataset, s.train_size, s.method, s.adapter_params
        """,
    ),
    View(
        "best",
        "`scaling` with the mean validation score, the cell's rank by it among cells of the same data, size and "
        "budget, and the trial with the best validation score.",
        """
        select s.sweep, s.model, s.dataset, s.train_size, s.method, s.reference, s.budget, s.cell_id, s.adapter_params,
               s.lr, coalesce(c.mean_val, v.val) as mean_val,
               rank() over (
                 partition by s.sweep, s.model, s.dataset, s.train_size, s.reference
                 order by coalesce(c.mean_val, v.val) desc nulls last
               ) as rank_by_val,
               s.n, s.mean, s.low, s.high, v.trial_id as best_trial
        from scaling s left join chosen c using (sweep, cell_id)
        left join (
          select sweep, cell_id, avg(val_score) as val, arg_max(trial_id, val_score) as trial_id
          from confirmed group by all
        ) v using (sweep, cell_id)
        order by s.sweep, s.model, s.dataset, s.train_size, s.budget nulls last, rank_by_val
        """,
    ),
    View(
        "coverage",
        "One row per cell: the number of trials that are planned, done, failed for good, and not run yet (`missing`), "
        "without rates past the edge of the range; and why the cell is infeasible. A re-run counts even if its rate is "
        "no longer among the best. `sweeps status` says which trials are still to come.",
        f"""
        select c.sweep, c.cell_id, c.label, c.method, c.reference, c.dataset, c.train_size, c.feasible, c.reason,
               c.tune_trials as tune_planned, coalesce(n.tune_done, 0) as tune_done,
               c.confirm_seeds as confirm_planned, coalesce(n.confirm_done, 0) as confirm_done,
               coalesce(n.tune_failed + n.confirm_failed, 0) as failed,
               case when c.feasible
                 then greatest(tune_planned - coalesce(n.tune_done + n.tune_failed, 0), 0)
                    + greatest(c.confirm_seeds - coalesce(n.confirm_done + n.confirm_failed, 0), 0)
                 else 0 end as missing
        from cells c left join (
          select t.sweep, t.cell_id,
                 count(*) filter ({PLANNED} and t.status in ('finished', 'pruned')) as tune_done,
                 count(f.trial_id) as confirm_done,
                 count(*) filter ({PLANNED} and t.status = 'failed') as tune_failed,
                 count(*) filter (t.stage = 'CONFIRM' and t.status = 'failed' and {COUNTS}) as confirm_failed
          from last_attempts t left join chosen c using (sweep, cell_id) left join cells k using (sweep, cell_id)
          left join confirmed f using (sweep, trial_id) group by all
        ) n using (sweep, cell_id)
        order by c.sweep, c.dataset, c.train_size, c.method, c.budget
        """,  # noqa: S608  ours
    ),
    View(
        "tuned",
        "One row per tuned cell: the points tried and finished; how much the last one adds to the expected best "
        "validation score (`last_gain`); how far a parabola through the best rate and its neighbours rises above it "
        "(`expected_gain`); and why more tuning might help (`under_tuned`): 'edge low' or 'high', 'few finished', "
        "'between rates'.",
        f"""
        with points as (
          select sweep, cell_id, lr, hyperparameters, avg(val_score) filter (status = 'finished') as score
          from searched group by all
        ), cells_tuned as (
          select sweep, cell_id, count(*) as points_tried, count(score) as points_finished,
                 max(score) as best_val, (max(score, 2))[2] as second_val
          from points group by all
        ), beside as (
          select sweep, cell_id, row_number() over (partition by sweep, cell_id order by score desc, lr) as place,
                 log10(lr) - lag(log10(lr)) over alike as lower, lead(log10(lr)) over alike - log10(lr) as upper,
                 score - lag(score) over alike as below, score - lead(score) over alike as above
          from points where score is not null
          window alike as (partition by sweep, cell_id, hyperparameters order by lr)
        ), fitted as (
          select sweep, cell_id, case when below + above > 0
                   then (below * upper / lower - above * lower / upper) ** 2
                        / (4 * (lower + upper) * (below / lower + above / upper))
                   else below + above end as expected_gain
          from beside where place = 1
        )
        select t.sweep, t.cell_id, t.points_tried, t.points_finished, t.best_val,
               (t.best_val - t.second_val) / t.points_finished as last_gain, f.expected_gain, h.edge,
               nullif(concat_ws('; ', 'edge ' || h.edge,
                 case when t.points_finished < {FEW} or t.points_finished < {SHARE} * t.points_tried
                   then 'few finished' end,
                 case when f.expected_gain > {RISING} then 'between rates' end
               ), '') as under_tuned
        from cells_tuned t left join fitted f using (sweep, cell_id) left join chosen h using (sweep, cell_id)
        """,  # noqa: S608  numbers of ours
    ),
    View(
        "signs",
        "One row per feasible cell, with signs of weak evidence: the number of seeds and of examples; how many rates "
        "share the best score (`rates_tied`); whether three or more seeds all have the same test score "
        "(`scores_equal`); whether every confirmed run scores the same as zero-shot (`untrained`); how much the last "
        "epoch added to the mean validation score, null unless every run gained (`still_rising`); what was searched "
        "besides the rate (`space`) and what was chosen (`hyperparameters`).",
        """
        with points as (
          select sweep, cell_id, arg_min(val_score, slot) as score from searched
          where status = 'finished' and val_score is not null
          group by sweep, cell_id, lr, hyperparameters
        ), tied as (
          select sweep, cell_id, any_value(n) as rates, count(*) as rates_tied from (
            select *, count(*) over cell as n, max(score) over cell as best from points
            window cell as (partition by sweep, cell_id)
          ) where score > best - 1e-12 group by all
        ), zero as (
          select sweep, model, dataset, train_size, any_value(test_score) as test, any_value(val_score) as val
          from confirmed where method = 'zero-shot' group by all
        ), same as (
          select t.sweep, t.cell_id, bool_and(abs(t.test_score - z.test) < 1e-12
                                              and coalesce(abs(t.val_score - z.val) < 1e-12, true)) as untrained
          from confirmed t join zero z using (sweep, model, dataset, train_size) where t.lr is not null group by all
        ), gains as (
          select m.sweep, m.cell_id, arg_max(m.val_score, m.epoch) - arg_max(m.val_score, m.epoch)
                 filter (m.epoch < t.epochs) as gain
          from metrics m join confirmed t using (sweep, trial_id, attempt) group by m.sweep, m.cell_id, m.trial_id
        ), scored as (
          select sweep, cell_id, count(test_score) as seeds_scored,
                 count(test_score) > 2 and max(test_score) - min(test_score) < 1e-12 as scores_equal
          from confirmed group by all
        ), last as (
          select sweep, cell_id, case when min(gain) > 0 then avg(gain) end as still_rising from gains group by all
        )
        select c.sweep, c.cell_id, c.model, c.dataset, c.train_size, c.method, c.reference, c.budget, c.count, c.dof,
               c.lr_centre, c.confirm_seeds, n.seeds_scored, n.scores_equal, c.val_examples, c.test_examples,
               c.test_lacks, c.absent, c.space, h.hyperparameters, d.rates, d.rates_tied, u.under_tuned, s.untrained,
               l.still_rising
        from cells c left join tied d using (sweep, cell_id) left join tuned u using (sweep, cell_id)
        left join same s using (sweep, cell_id) left join last l using (sweep, cell_id)
        left join scored n using (sweep, cell_id) left join chosen h using (sweep, cell_id)
        where c.feasible or c.absent is not null
        order by c.sweep, c.dataset, c.train_size, c.budget nulls last, c.method
        """,
    ),
    View(
        "parity",
        "One row per feasible cell, with the evidence of fairness: the parameters of the budget, of the solver and as "
        "built; the tuning allowance and its use, with device-seconds (`tune_seconds`) and devices; the learning rates "
        "tried, their range and the choice; epochs and samples.",
        """
        select c.sweep, c.cell_id, c.dataset, c.train_size, c.method, c.reference, c.budget, c.allocation, c.capacity,
               c.count, c.dof, c.dof_measured, c.dof_at_most, c.residual, c.residual_fraction, n.adapter_params,
               n.adapter_params = c.count as count_holds, c.step_memory_bytes, c.step_flops, c.forward_flops,
               c.saved_bytes, n.head_params, n.stored_bytes, c.tune_trials as allowance,
               coalesce(n.tune_used, 0) as allowance_used, coalesce(n.tune_failed, 0) as tune_failed,
               coalesce(n.tune_full, 0) as tune_full_length, coalesce(n.rates, 0) as rates_tried,
               log10(c.lr_high / c.lr_low) as decades, h.lr as chosen_lr, c.space, h.hyperparameters, h.edge,
               u.under_tuned, u.last_gain, u.expected_gain,
               coalesce(n.warm_starts, 0) as warm_starts, coalesce(n.widened, 0) as widened, h.n_rerun_seeds,
               c.confirm_seeds, coalesce(f.seeds, 0) as seeds_confirmed, coalesce(s.superseded, 0) as superseded,
               c.allowance_samples, n.tune_samples, n.tune_seconds, n.devices, n.computed_on,
               f.confirm_samples, f.epochs, c.negatives
        from cells c left join chosen h using (sweep, cell_id) left join tuned u using (sweep, cell_id)
        left join (
          select sweep, cell_id, max(adapter_params) as adapter_params, max(head_params) as head_params,
                 max(stored_bytes) as stored_bytes,
                 count(*) filter (stage = 'TUNE') as tune_used,
                 count(*) filter (stage = 'TUNE' and status = 'failed') as tune_failed,
                 count(*) filter (stage = 'TUNE' and status = 'finished') as tune_full,
                 count(distinct lr) filter (stage = 'TUNE') as rates,
                 count(*) filter (stage = 'TUNE' and origin in ('published', 'neighbour')) as warm_starts,
                 count(*) filter (stage = 'TUNE' and origin = 'widened') as widened,
                 cast(sum(samples) filter (stage = 'TUNE') as bigint) as tune_samples,
                 sum(coalesce(workers, 1)
                     * case when seconds_setup is null and coalesce(seconds_train, 0) + coalesce(seconds_eval, 0) > 0
                       then coalesce(seconds_train, 0) + coalesce(seconds_eval, 0)
                       else greatest(coalesce(seconds_total - coalesce(seconds_setup, 0), 0),
                                     coalesce(seconds_train, 0) + coalesce(seconds_eval, 0)) end)
                   filter (stage = 'TUNE') as tune_seconds,
                 string_agg(distinct coalesce(nullif(device, 'cpu'), processor, device),
                            ', ' order by coalesce(nullif(device, 'cpu'), processor, device))
                   filter (stage = 'TUNE') as devices,
                 string_agg(distinct device || ' ' || precision, ', ' order by device || ' ' || precision)
                   filter (status = 'finished') as computed_on
          from last_attempts group by all
        ) n using (sweep, cell_id)
        left join (
          select sweep, cell_id, count(*) as seeds, cast(sum(samples) as bigint) as confirm_samples,
                 max(epochs) as epochs
          from confirmed group by all
        ) f using (sweep, cell_id)
        left join (select sweep, cell_id, count(*) as superseded from superseded group by all) s using (sweep, cell_id)
        where c.feasible
        order by c.sweep, c.dataset, c.train_size, c.budget nulls last, c.method
        """,
    ),
    View(
        "failures",
        "One row per failed attempt: the reason, and whether a later attempt finished (`recovered`).",
        """
        select t.sweep, t.trial_id, t.attempt, t.stage, t.method, t.reference, t.dataset, t.train_size, t.lr,
               t.data_seed, t.reason, t.host, t.ended_at, l.status = 'finished' as recovered
        from trials t join last_attempts l using (sweep, trial_id)
        where t.status = 'failed' order by t.ended_at, t.trial_id, t.attempt
        """,
    ),
    View(
        "cost",
        "One row per method and budget: attempts, hours, seconds per finished trial, the part of them outside training "
        "and evaluation (`seconds_overhead`), throughput and memory.",
        f"""
        select sweep, method, reference, count(*) as attempts, max(adapter_params) as adapter_params,
               sum({SECONDS}) / 3600 as hours,
               avg({SECONDS}) filter (status = 'finished') as seconds_per_trial,
               avg(seconds_train) filter (status = 'finished') as seconds_train,
               avg({SECONDS} - coalesce(seconds_train, 0) - coalesce(seconds_eval, 0))
                 filter (status = 'finished') as seconds_overhead,
               median(samples_per_second) filter (status = 'finished') as samples_per_second,
               max(peak_memory_bytes) as peak_memory_bytes, max(stored_bytes) as stored_bytes
        from trials group by all order by sweep, method, adapter_params
        """,  # noqa: S608  ours
    ),
)

VIEWS: dict[str, View] = {view.name: view for view in _ALL}
"""The views by name. Each comes after the views that it reads."""


def named_in(query: str, names: Iterable[str]) -> list[str]:
    """Return those of `names` that a query may read, itself or through a view.

    A query that asks which tables there are gets all names. A query may also compute a table's name (`query_table`).
    Such a table is not found here, and DuckDB then says that it does not exist (`NO_SUCH_TABLE`).
    """
    if re.search(
        r"\b(show|describe|summarize|information_schema|pragma\w*|duckdb_\w+|sqlite_\w+|pg_\w+)\b", query, re.I
    ):
        return list(names)
    words = set(re.findall(r"\w+", query.lower()))
    for view in reversed(VIEWS.values()):  # each comes after the views that it reads
        if view.name in words:
            words |= set(re.findall(r"\w+", view.sql.lower()))
    return [name for name in names if name in words]
