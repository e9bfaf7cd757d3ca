"""What is on disk of a sweep: the journal first, then tables; who may write there, and a copy elsewhere.

Uses `search`, `watch`, `spec` and analysis' store; knows nothing of Ray.

    declared  what a sweep declares of its seeds and margin, and when that was changed
    journal   the append-only file of events, and the truth about a sweep
    ledger    the books of a running sweep: journal, state in memory, tables, in this order
    locks     one driver per results folder, and one sweep per name
    replay    a sweep's state from its journal and its sealed tables
    rows      rows of the tables from what a lane sends back
    sealing   finished trials from the journal into immutable Parquet parts
    upload    a copy of the results folder elsewhere, kept up while the sweep runs
"""
