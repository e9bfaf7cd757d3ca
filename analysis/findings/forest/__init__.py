"""All differences of the methods in question on one axis.

Files:

    finding  caption
    figure   draws them
"""
