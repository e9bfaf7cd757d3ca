"""A model's weights by name, and how an adapter gets into its place and out again without a trace.

Knows the adapter's interface (`randlora.adapter`), and no method.

    parts      the rows of fused weights that are q, k, v, gate or up
    attention  `nn.MultiheadAttention` whose adapters meet the input
    quantised  layers of 4 or 8 bits that keep their own product
    sharded    weights that FSDP2 splits over processes
    sites      one weight, whatever module it is in, and how an adapter is installed there
    prompted   where prompts enter a CLIP's towers
    targets    weights picked by name, suffix, glob or part
    quantise   targets turned into quantised layers
    families   what is adapted by default in each family of models
"""
