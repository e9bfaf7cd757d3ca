"""What to take at each budget, and what would change that.

Files:

    finding   the table
    numbers   the best methods of a budget, their cost, and the seeds that would distinguish them
    words     the sentences
    terminal  what `sweeps best` prints
"""
