"""Score against training examples, from the curves of `fits.measured`.

Files:

    finding  tables, captions, sentence
    figure   draws the curves
"""
