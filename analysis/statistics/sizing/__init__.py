"""How large a sweep must be, and what it takes.

Uses `power` and `scaling` of the room above.

    seeds      seeds needed for a difference, for the next sweep
    estimates  what a sweep was estimated to take against what it took
"""
