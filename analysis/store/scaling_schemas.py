"""Columns of the scaling curve and of the comparisons; see `scaling`."""

from __future__ import annotations

import pyarrow as pa

CURVE = pa.schema(
    [
        ("sweep", pa.string()),
        ("model", pa.string()),
        ("dataset", pa.string()),  # null: the mean over `n_datasets` data sets
        ("train_size", pa.string()),
        ("method", pa.string()),
        ("name", pa.string()),
        ("kind", pa.string()),  # 'curve', or 'line' for a method without a budget
        ("reference", pa.string()),
        ("budget", pa.int64()),
        ("adapter_params", pa.int64()),
        ("lr", pa.float64()),
        ("n", pa.int64()),
        ("mean", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("sd", pa.float64()),
        ("n_datasets", pa.int64()),
    ]
)

COMPARISONS = pa.schema(
    [
        ("sweep", pa.string()),
        ("model", pa.string()),
        ("dataset", pa.string()),  # null: all data sets together
        ("train_size", pa.string()),
        ("method", pa.string()),
        ("baseline", pa.string()),
        ("reference", pa.string()),  # null: all matched budgets together
        ("budget", pa.int64()),
        # method's adapter parameters / baseline's; null for a baseline without a budget
        ("params_ratio", pa.float64()),
        ("n", pa.int64()),  # pairs; of a permutation test those of all its data sets
        ("datasets", pa.int64()),  # whose pairs count by themselves; 1 where each seed is averaged over data sets first
        ("n_datasets", pa.int64()),  # that the row is of
        ("difference", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("sd", pa.float64()),  # of the paired differences; over several data sets pooled within them
        ("error", pa.float64()),  # standard error of the mean difference, from `sd`
        ("freedom", pa.int64()),  # degrees of freedom of `sd`
        ("p", pa.float64()),
        # of a permutation test: F test that a seed moves the difference on all data sets alike; small: `p` is too small
        ("p_seeds", pa.float64()),
        ("p_holm", pa.float64()),
        ("verdict", pa.string()),
        ("choice_sd", pa.float64()),  # what the choice of both arms' rates adds (`choice`); null where not known
        ("p_choice", pa.float64()),  # of the test that includes it; null where it is not known
        ("p_choice_holm", pa.float64()),
        ("verdict_choice", pa.string()),  # 'not testable' where it is not known
        ("test", pa.string()),
        # which arms chose the end of their range of rates: 'method', 'baseline', 'both'; else null
        ("edge", pa.string()),
        # chance to find a true difference of PLANTED in this family; null where not computable
        ("power", pa.float64()),
        ("seeds_needed", pa.int64()),  # least seeds that would find it 4 times in 5; null: not within 1000, or unknown
        ("detectable", pa.float64()),  # smallest true difference that is found 4 times in 5; null where not computable
        ("effect", pa.float64()),  # Hedges' g of the paired differences: their mean in standard deviations
        ("effect_low", pa.float64()),
        ("effect_high", pa.float64()),
    ]
)
