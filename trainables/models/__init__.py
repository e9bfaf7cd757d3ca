"""Base models: their names, shapes and weights, and how they are called.

This room uses `cache`, `config`, `runtime` and `seeds`, and randlora's targets. It knows nothing of data sets or tasks.

    families      how an id is written, and the default targets of a family
    blocks        a model's repeated blocks
    encoders      one vector per input, and the heads on it
    fused         q, k and v as one weight
    folder        checks that a local model's folder refers to nothing outside it
    shapes        shapes without weights
    loading       models with their weights
    base_weights  how frozen weights are held: float32, bfloat16, or linear layers in 4 or 8 bits
    shared        one copy of the weights for a machine's CPU workers
    sharded       weights split over the workers of one trial (FSDP2)
    forward       forward passes that compute or keep less
    language      causal language models: logits at the positions that are asked for
"""
