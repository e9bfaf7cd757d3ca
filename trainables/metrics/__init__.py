"""Compute scores of predictions, given the right answers.

This room gets numbers and texts alone. It knows no model and no data set.

    classification  accuracy, Matthews, F1, Pearson, Spearman; correctness in bits
    texts           BLEU, NIST, METEOR, ROUGE-L and CIDEr of generated texts
"""
