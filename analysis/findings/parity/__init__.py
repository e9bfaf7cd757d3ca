"""What was equal over all cells of a sweep, and what was not.

Files:

    finding  the table, and sentences on a store
    words    the sentences, made from rows
"""
