"""A trained model as people use it: what its numbers mean, its weights put together, its answers to new inputs.

Uses `tasks` and below; knows nothing of training, and writes nothing but the facts.

    facts    classes, prompts and preprocessing of a trial, kept beside its weights
    trained  a base model with the weights that a trial kept
    answers  classes with probabilities, or generated texts, for images and texts
"""
