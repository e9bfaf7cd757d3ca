"""Find a model's weights by name, put adapters in their place, and take them out again without a trace.

This room knows the adapter's interface (`randlora.adapter`), and no method.

    parts      the rows of fused weights that are q, k, v, gate or up
    attention  `nn.MultiheadAttention` whose adapters act on the input
    quantised  layers of 4 or 8 bits that compute their own product
    sharded    weights that FSDP2 splits over processes
    sites      one weight in whatever module it is, and how an adapter is installed there
    prompted   where prompts enter a CLIP's towers
    targets    picks weights by name, end of name, pattern or part
    quantise   turns targets into quantised layers
    families   the default targets of each family of models
"""
