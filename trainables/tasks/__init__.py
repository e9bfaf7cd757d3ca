"""Model and data of one trial, as the training loop sees them: rows, losses and scores.

This room uses `data`, `models` and `metrics`. It knows nothing of optimisers or checkpoints.

    lane_cache  what a lane caches between trials
    task        what the loop knows of any task
    images      classification of images
    text        language models, and classification of sentences
    make        makes the task of a model by its kind
"""
