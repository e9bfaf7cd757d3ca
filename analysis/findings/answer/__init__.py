"""The sweep's answer to its question.

Files:

    answer  the answer of a store, its limits, and what more seeds would cost
    words   the sentences, made from rows
"""
