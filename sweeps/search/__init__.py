"""Stages TUNE and CONFIRM without anyone who trains: which trial comes next, and which point is chosen.

Uses `spec`. Everything is a function of the plan and of the trials known so far; nothing is read, written or started.

    samplers  one ask of Optuna's samplers, over a study rebuilt from a cell's trials
    grids     grids from coarse to fine
    points    the next point of a study: grid, Sobol, or a sampler's, and one past an edge
    refining  the next rate of a local search for the best one
    pruning   whether a TUNE trial is stopped early
    rules     the rules that a results folder's trials are made by, and seeds by them
    slots     a trial of a cell, and the choice of a cell
    effort    how many points a cell tries, and where each comes from
    order     which cells are served first
    stages    what a cell and a whole sweep need next
"""
