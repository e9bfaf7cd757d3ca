"""Base models: their names, shapes and weights, and how they are called.

Uses `cache`, `config`, `runtime` and `seeds`, and randlora's targets; knows nothing of data sets or tasks.

    families     how an id is written, and what a family adapts by default
    blocks       a model's repeated blocks
    encoders     one vector per input, and the heads on it
    fused        q, k and v as one weight
    folder       what a local model's folder must not refer to
    shapes       shapes without weights
    loading      models with their weights
    base_weights how frozen weights are held: float32, bfloat16, or linear layers in 4 or 8 bits
    shared       one copy of the weights for a machine's CPU workers
    sharded      weights split over the workers of one trial (FSDP2)
    forward      forward passes that do less, or keep less
    language     causal language models: logits where they are asked for
"""
