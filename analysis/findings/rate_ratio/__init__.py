"""Best learning rates divided by the baseline's.

Files:

    finding  table, caption, sentence
    numbers  where the best learning rate of a cell lies, and the ratio
    figure   draws the ratios
"""
