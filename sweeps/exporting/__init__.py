"""What leaves a results folder: a trained model with its card, results as a data set, experiments for PEFT.

Uses `records`, `spec` and `errors`; it trains nothing.

    kept        trials that left their weights, by id, or the best by validation score
    card        what a card says of scores: README.md of a model, and of results as a data set
    usage       README.md of an exported trial: code that loads it
    export      a kept trial written to a folder, with all that it takes to predict
    dataset     a results folder as a data set
    comparison  tuned cells as experiments of PEFT's method_comparison
    hub         a folder sent to the Hugging Face Hub
"""
