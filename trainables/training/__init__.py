"""One trial from its configuration to its result.

Uses everything below; knows nothing of Ray or of sweeps.

    checkpoints  a trial's own checkpoint, and when one is due
    optim        AdamW, the schedule, and gradients of several workers
    adapting     what trains in a trial, and how the base model is given back
    selection    the weights with the lowest validation loss
    trainer      epochs of optimiser steps
    measured     what a trial measures: numbers that become columns of the results tables
    fake_steps   operations and memory of a step, measured on tensors without values
    costs        what training a method costs, from shapes alone
    worker       one trial: `run_trial`
"""
