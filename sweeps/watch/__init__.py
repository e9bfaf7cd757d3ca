"""Who watches a sweep: live displays, a mirror for optuna-dashboard, experiment trackers.

Uses `search` and `spec`; nothing here decides anything.

    counts     phases, time left, and where a failure was raised; loads nothing
    displays   live progress: a table that redraws, lines, JSON, or nothing
    mirror     a copy of every cell's study in an Optuna storage
    observers  tells mirrors and trackers what happens, from a thread of its own
    snapshot   the numbers of a sweep in progress
    streams    standard output and error that outlive their reader
    trackers   TensorBoard, MLflow, Weights & Biases and Trackio as observers
"""
