"""Train several trials together on one copy of the base model.

Uses `training` for all that a single trial does too, and `randlora.packing` for the shared passes.

    alike     what the trials of a pack must have in common
    together  the pack: `run_pack`
"""
