"""How many seeds a sweep needs, which differences it can detect, and how much time, memory and money it costs.

Uses `power`, `choice`, `tuning` and `scaling` of the room above.

    prospects  the smallest difference that a sweep will detect, before it runs, from one like it
    seeds      seeds needed for a difference, for the next sweep
    estimates  the estimated cost of a sweep against its actual cost
"""
