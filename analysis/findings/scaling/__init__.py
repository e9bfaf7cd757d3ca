"""Score against trainable parameters.

Files:

    finding  the figure's caption, and the table of means over data sets
    numbers  the curve
    figure   draws it
"""
