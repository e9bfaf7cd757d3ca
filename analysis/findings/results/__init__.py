"""Score, difference and verdict of every cell.

Files:

    finding   the table of the report
    numbers   the table as Arrow
    terminal  what `sweeps best` prints
    examples  intervals over seeds and test examples
    measures  the score and the held-out loss of the same runs, and which of them separates methods better
"""
