"""Draw the frozen bases, and compute the exact product of a delta with an input.

Functions here take and return tensors. They know no adapters, methods or models. The room uses `randlora.errors` alone.

    bases     frozen matrices from a seed, bit for bit the same on every machine
    kernels   the optional C library, built on first use and cached; and whether Triton was asked for
    ternary   products with a ternary basis that cost less than dense ones
    tensor_cores  such products on a GPU, by Triton
    plans     orders of contraction of a RandLoRA delta, and the cheapest of them
    contract  low-rank products, and RandLoRA's products by a plan
    decompositions  a cache of singular vectors and other decompositions of base weights
"""
