"""Several adapters of one kind in one forward of the frozen model they share.

Uses `adapted` and below.

    turns     whose slices a batch has, and their random numbers
    dropouts  dropout of the frozen model, slice by slice
    stacked   one batched product for the adapters of one weight
    packing   the pack: members in, members out
"""
