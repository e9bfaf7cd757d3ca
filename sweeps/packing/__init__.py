"""Packing: which trials share one copy of the base model on a worker. Nothing here trains.

Packing changes when trials run, never which trials run. The reasons are in docs/decisions/0004, the layout in 0018.
Uses `search` and `spec`. Trials are trained together by `trainables.packing`.

    sizes     how many trials share a worker, and how workers share a GPU
    choosing  which trials are packed, and which slots go to a worker together now
    words     what `sweeps plan` says about it
"""
