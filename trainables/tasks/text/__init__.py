"""Tasks on texts: causal language models, and text encoders that classify sentences.

Uses the texts of `data`, and `models`.

    rows        what tasks on texts share
    learned     the tokens of a completion or a conversation that are learned
    encoding    prompts and responses in tokens
    scoring     log-likelihoods of choices
    generation  beam search
    causal_lm   fine-tuning of language models, and their two protocols
    sentences   labelled sentences in tokens
    classifier  classification and regression of sentences
"""
