"""Writes parts of a results folder elsewhere: a trained model with its card, a data set, experiments for PEFT.

It uses `records`, `spec` and `errors`. It trains nothing.

    kept        finds a trial whose weights were kept, by its id, or the best by validation score
    card        writes the scores of a card (README.md): for a model, and for results as a data set
    usage       writes the README.md of an exported trial, with code that loads it
    export      writes a kept trial into a folder, with everything needed to predict
    dataset     writes a results folder as a data set
    comparison  writes tuned cells as experiments of PEFT's method_comparison
    hub         sends a folder to the Hugging Face Hub
"""
