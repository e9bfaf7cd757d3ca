# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ask a results folder
#
# Open the results of a sweep, ask three questions, draw a curve, then load the best adapter and predict.
# Runs as a script (`python examples/notebooks/explore_results.py RESULTS`) or, cell by cell, in an editor that knows
# percent scripts (Jupyter with jupytext, VS Code). The last part needs a sweep with `[keep] adapters = "best"`.

# %%
import os
import sys
from pathlib import Path

from analysis import open_store

folders = [argument for argument in sys.argv[1:] if Path(argument).is_dir()]
folder = Path(folders[0] if folders else os.environ.get("RESULTS", "results/quickstart"))
store = open_store(folder)
print(store.names, "-", store.table("trials").num_rows, "trials")

# %% [markdown]
# ## 1. What did each method reach, and how sure is that?

# %%
query = """
    select method, reference, adapter_params, n, round(100 * mean, 1) as "mean %",
           round(100 * low, 1) as low, round(100 * high, 1) as high
    from scaling order by method, adapter_params
"""
for row in store.sql(query).to_pylist():
    print(row)

# %% [markdown]
# ## 2. Is RandLoRA better than LoRA at equal parameters?
# The sentence claims only what the Holm-corrected paired tests show. The table has every comparison.

# %%
from analysis import comparisons, conclusion  # noqa: E402

print(conclusion(store))
for row in comparisons(store).select(["method", "reference", "difference", "low", "high", "verdict"]).to_pylist():
    print(row)

# %% [markdown]
# ## 3. What does a score cost?
# The budget at which each method's isotonic fit reaches 99 % of full fine-tuning, with an interval over seeds. It needs
# three budgets or more. `x` may also be `seconds_train` or `peak_memory_bytes` (docs/analysis.md).

# %%
from analysis.findings.fits.readings import crossing_sentence, crossing_table, needed_table  # noqa: E402

for row in needed_table(store, x="adapter_params").to_pylist():
    print(row["method"], row["goal"], row["value"], (row["low"], row["high"]), row["note"])
for row in crossing_table(store).to_pylist():
    print(crossing_sentence(row))

# %% [markdown]
# ## The curve

# %%
from analysis import curve  # noqa: E402
from analysis.drawing.charts import save  # noqa: E402
from analysis.findings.scaling.figure import draw_scaling  # noqa: E402

figure = draw_scaling(curve(store))
print(save(figure, folder / "figures", "notebook_curve", formats=("png",)))

# %% [markdown]
# ## Load the best adapter and predict
# This takes the confirmed trial with the best validation score among those whose adapter was kept.

# %%
kept = {p.parent.name for p in folder.glob("adapters/*/adapter.json")}
trials = [r for r in store.table("confirmed").to_pylist() if r["trial_id"] in kept]
if not trials:
    print('no adapter was kept; set [keep] adapters = "best" and run the sweep again')
else:
    import torch

    import randlora
    from analysis.diagnostics.bench import bench_of

    best = max(trials, key=lambda r: r["val_score"] if r["val_score"] is not None else -1.0)
    ready = bench_of(store, best["trial_id"])  # its base model, its task, and its training images
    images, labels = ready.task.inputs(ready.examples(["train"], 64), None)
    classifier = ready.task.classifier
    with torch.no_grad():
        classifier.before_evaluation()
        before = (classifier.classify(classifier.features(images)).argmax(dim=1) == labels).float().mean().item()
        adapted = randlora.load(ready.module, folder / "adapters" / best["trial_id"])
        classifier.before_evaluation()
        after = (classifier.classify(classifier.features(images)).argmax(dim=1) == labels).float().mean().item()
        adapted.detach()
    print(f"{best['method']} at {best['reference']}: {adapted.count():,} parameters")
    print(f"accuracy on {len(labels)} training images: {before:.2f} without the adapter, {after:.2f} with it")
