"""Read-only SQL over the tables of a results folder, within limits of time and memory.

Uses `schemas` of the room above.

    limits      the time and memory that a query may take
    no_pandas   keeps pandas out of processes that only read tables
    views       the named views, as SQL
    queries     a query run in this process
    process     a query from outside, run in a process whose limits hold
"""
