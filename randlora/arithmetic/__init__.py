"""How frozen bases are drawn and how a delta meets an input, exactly.

Tensors in, tensors out: nothing here knows of adapters, methods or models. Uses `randlora.errors` alone.

    bases     frozen matrices from a seed, bit for bit the same on every machine
    kernels   the optional C library: built on first use, kept in a cache; and who asks for Triton
    ternary   products with a ternary basis that cost less than dense ones
    tensor_cores  such products on a GPU, by Triton
    plans     orders of contraction of a RandLoRA delta, and the cheapest of them
    contract  the products: low-rank ones, and RandLoRA's by a plan
    decompositions  singular vectors and the like of base weights, kept from one attach to the next
"""
