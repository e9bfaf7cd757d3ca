"""Shows a sweep in progress: live displays, a mirror for optuna-dashboard, experiment trackers.

It uses `progress`, `search` and `spec`. Nothing here decides or counts anything.

    displays   live progress: a table that redraws, lines, JSON, or nothing
    mirror     copies every cell's study into an Optuna storage
    observers  tells mirrors and trackers what happens, in a separate thread
    streams    standard output and error that go on if nobody reads them any more
    trackers   TensorBoard, MLflow, Weights & Biases and Trackio as observers
"""
