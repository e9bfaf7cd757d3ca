"""Use a trained model: what its numbers mean, its weights put together, its answers to new inputs.

This room uses `tasks` and the rooms below. It knows nothing of training, and writes only the facts.

    facts    classes, prompts and preprocessing of a trial, stored beside its weights
    trained  a base model with the weights that a trial kept
    answers  classes with probabilities, or generated texts, for images and texts
"""
