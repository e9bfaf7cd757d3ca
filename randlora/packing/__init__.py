"""Run several adapters of one kind in one forward of the frozen model that they share.

This room uses `adapted` and the rooms below.

    turns     whose slices a batch has, and the random numbers of each member
    dropouts  dropout of the frozen model, slice by slice
    stacked   one batched product for the adapters of one weight
    packing   the pack itself
"""
