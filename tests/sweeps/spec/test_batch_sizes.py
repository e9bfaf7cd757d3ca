"""Searched batch sizes: what a list may hold, and what can't stand beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.exporting.export import write_spec
from sweeps.plan.plan import Plan
from sweeps.spec.batch_sizes import FIELD, batch_sizes, with_largest_batch
from sweeps.spec.spec import SweepSpec
from tests.sweeps.spec.support import GOOD, Wrong, problems, refused, write

VISION = GOOD.replace('clip"', 'clip"\nadapt = "vision"').replace("fashion-mnist", "fashion-mnist-turned")
SPACE = "[search.space]\nglobal_batch_size = "
LIST = SPACE + "[16, 64, 32]\n"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[search]\nbatch_size = [16, 32]", Wrong("search.batch_size", [16, 32], FIELD)),
        (SPACE + "[0, 16]", Wrong(FIELD, 0, "1", ("at least 1",))),
        (SPACE + "[16, 32.5]", Wrong(FIELD, 32.5, "32", ("whole number",))),
        (SPACE + "[16, '32']", Wrong(FIELD, "32", None, ("whole number",))),
        (SPACE + "[16, true]", Wrong(FIELD, True, None, ("whole number",))),
        (SPACE + "[32, 16, 32.0]", Wrong(FIELD, [32, 16, 32.0], "[16, 32]", ("once",))),
        (SPACE + "[32]", Wrong(FIELD, [32], "train.global_batch_size = 32")),
        (SPACE + "{ low = 16, high = 64 }", Wrong(FIELD, None, "[16, 64]", ("list",))),
        (
            "[methods.vera]\nspace = { global_batch_size = [16, 32] }",
            Wrong("methods.vera.space.global_batch_size", None, FIELD),
        ),
        (LIST + "[train]\nglobal_batch_size = 48", Wrong("train.global_batch_size", 48, "32", (FIELD, "[16, 32, 64]"))),
        (LIST + "[train]\nwarmup_steps = 10", Wrong("train.warmup_steps", 10, "train.warmup_fraction", (FIELD,))),
        (LIST + "[train]\nmin_batches_per_epoch = 10", Wrong("train.min_batches_per_epoch", 10, "data.epochs")),
        (
            LIST + "[train]\nselect = 'best'\nselect_every = 10",
            Wrong("train.select_every", 10, "leave it out: once an epoch", (FIELD,)),
        ),
    ],
)
def test_a_list_that_is_none_and_settings_that_it_rules_out(tmp_path: Path, text: str, wrong: Wrong) -> None:
    (found,) = problems(tmp_path, VISION + text)
    wrong.check(found)


def test_a_batch_size_of_the_list_may_be_set_to_start_from(tmp_path: Path) -> None:
    spec = SweepSpec.load(write(tmp_path, VISION + LIST + "[train]\nglobal_batch_size = 32"))
    assert batch_sizes(spec) == (16, 64, 32)
    assert with_largest_batch(spec).global_batch_size == 64
    (cell, *_) = Plan.from_spec(spec).cells
    assert dict(cell.published) == {"global_batch_size": 32}


def test_the_file_kept_beside_results_reads_back_the_same(tmp_path: Path) -> None:
    for train in ("", "[train]\nglobal_batch_size = 32\n"):
        spec = SweepSpec.load(write(tmp_path, VISION + LIST + train), [f'output="{tmp_path}/out"'])
        assert SweepSpec.load(write_spec(spec)).identity() == spec.identity()


def test_no_batch_sizes_are_searched_where_nothing_is(tmp_path: Path) -> None:
    text = VISION + LIST + "[train]\nglobal_batch_size = 48\nwarmup_steps = 10\n"
    spec = SweepSpec.load(write(tmp_path, 'protocol = "paper"\n' + text))
    assert batch_sizes(spec) == ()
    assert with_largest_batch(spec) is spec.train


@pytest.mark.parametrize(
    ("text", "overrides", "wrong"),
    [
        (GOOD, [], Wrong(FIELD, [16, 64, 32], "train.global_batch_size = 64", ("contrastive", "lora"))),
        (VISION, ["resources.workers=20"], Wrong(FIELD, 16, "20", ("resources.workers = 20",))),
        (VISION, ["train.length_group=8"], Wrong("train.length_group", 8, None, ("models of text",))),
        (
            VISION,
            ["search.trials=6"],
            Wrong(
                "search.sampler",
                "grid",
                "qmc, or a larger search.trials or search.allowance",
                ("3 combinations", "2 points"),
            ),
        ),
    ],
)
def test_what_a_model_or_an_allowance_rules_out(tmp_path: Path, text: str, overrides: list[str], wrong: Wrong) -> None:
    spec = SweepSpec.load(write(tmp_path, text + LIST), overrides)
    (found,) = refused(lambda: Plan.from_spec(spec))
    wrong.check(found)


def test_methods_whose_loss_compares_no_batch_may_search_it_beside_zero_shot(tmp_path: Path) -> None:
    text = GOOD.replace("[methods.lora]\n[methods.randlora]", "[methods.linear-probe]\n[methods.zero-shot]") + LIST
    cells = Plan.from_spec(SweepSpec.load(write(tmp_path, text))).cells
    assert [[d.name for d in cell.dimensions] for cell in cells] == [["global_batch_size"], []]


def test_a_batch_larger_than_the_training_split_is_refused(tmp_path: Path) -> None:
    text = VISION.replace("[data]", '[data]\ntrain_size = ["2-shot"]') + LIST
    plan = Plan.from_spec(SweepSpec.load(write(tmp_path, text)))
    (found,) = refused(lambda: plan.with_sizes(download=False))
    Wrong(FIELD, 64, "20", ("20 training examples", "2-shot")).check(found)
    fits = SweepSpec.load(write(tmp_path, text), ["search.space.global_batch_size=[10, 20]"])
    assert all(cell.val_examples for cell in Plan.from_spec(fits).with_sizes(download=False).cells)
