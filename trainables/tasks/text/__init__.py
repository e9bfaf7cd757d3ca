"""Tasks on texts: causal language models, and text encoders that classify sentences.

This room uses the texts of `data`, and `models`.

    rows        what tasks on texts share
    learned     which tokens of a completion or a conversation are learned
    encoding    turns prompts and responses into tokens
    scoring     log-likelihoods of choices
    generation  beam search
    causal_lm   fine-tuning of language models, and their two evaluation protocols
    sentences   turns labelled sentences into tokens
    classifier  classification and regression of sentences
"""
