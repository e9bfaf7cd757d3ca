"""The search: decides which trial of stages TUNE and CONFIRM is next, and which learning rate is chosen.

It uses `spec`. Everything is a function of the plan and of the trials known so far. This room reads and writes nothing.
A point is a learning rate, with the values of other searched hyperparameters.

    samplers  asks one of Optuna's samplers for a point, with a study rebuilt from a cell's trials
    grids     makes grids from coarse to fine
    points    proposes the next point: from a grid, Sobol points, a sampler, a local fit, or past the edge of the range
    refining  computes the next rate of a local fit around the best one
    pruning   decides whether a TUNE trial is stopped early
    rules     the rules by which the trials of a results folder are made
    slots     a slot (one planned trial of a cell) and a choice (the chosen learning rate of a cell)
    effort    counts the points that a cell may try, and proposes each
    order     decides which cells are served first
    stages    decides which slot of a cell, and of a whole sweep, is next
"""
