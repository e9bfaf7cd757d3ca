"""The effect of the update's rank and of the number of parameters.

Files:

    finding  table, caption, sentences
    numbers  slopes per doubling, and their tests
    figure   score against rank
"""
