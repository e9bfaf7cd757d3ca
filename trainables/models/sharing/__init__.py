"""One copy of a base model's weights for all CPU workers of a machine, mapped from a file in the cache.

Uses `models.loading` and `cache`.

    mapped    tensors in one file that processes map into memory
    skeleton  a model's modules without its weights
    shared    the shared model by id
"""
