"""Models with adapters: attached, loaded, accumulated.

Uses everything below.

    accumulate  gradient accumulation through one W0 + delta
    adapted     the model with its adapters: count, merge, disable, detach, save
    attach      adapters put on weights chosen by name
    gradients   the loss's gradient at the target weights, from which LoRA-GA starts
    load        adapters read from disk and attached
    freedom     how many of the counted parameters act
"""
