"""Writes a sweep's results folder: first the journal, then tables. Also locks the folder, and copies it elsewhere.

Uses `search`, `watch`, `spec` and analysis' store; knows nothing of Ray.

    declared  records the seeds and the margin that a sweep declares, and when they were changed
    journal   the append-only file of events, and the truth about a sweep
    ledger    writes every event of a running sweep to the journal, the state in memory and the tables
    locks     one driver per results folder, and one sweep per name
    replay    makes a sweep's state from its journal and its sealed tables
    rows      makes rows of the tables from the outcome of a trial
    sealing   writes the rows of finished trials into immutable Parquet parts
    upload    copies the results folder elsewhere while the sweep runs
"""
