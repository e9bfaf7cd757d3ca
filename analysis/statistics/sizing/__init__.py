"""How large a sweep must be, and what it takes.

Uses `power`, `choice`, `tuning` and `scaling` of the room above.

    prospects  the smallest difference that a sweep will detect, before it runs, from one like it
    seeds      seeds needed for a difference, for the next sweep
    estimates  what a sweep was estimated to take against what it took
"""
