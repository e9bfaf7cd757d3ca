"""Attach adapters to a model, save and load them, and train them.

This room uses every other room of the package, except for `packing`.

    accumulate  gradient accumulation through one W0 + delta
    adapted     the model with its adapters: count, merge, disable, detach, save
    attach      puts adapters on weights that are chosen by name
    uses        whether each adapter takes part in a forward
    gradients   the loss's gradient at the target weights, from which LoRA-GA starts
    load        reads adapters from disk and attaches them
    freedom     degrees of freedom of an update: how many of the counted parameters act
"""
