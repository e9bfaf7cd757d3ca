"""The results on disk and the SQL over them: schemas, parts, the journal's reading side, and an opened folder.

Uses `errors` and `format` alone; knows nothing of statistics. What is written here is never rewritten.

    codec               a table's columns from a dataclass; rows to JSON and back
    columns             Arrow's types, and words on budgets
    rows                the tables of a sweep: one dataclass a table
    diagnostic_rows     the tables of `sweeps analyze`: one dataclass a table
    schemas             every results table, and its Arrow schema
    slot_kinds          what the number of a TUNE slot says
    tables              rows to Parquet parts and back; damaged parts are named
    journal             the events of a sweep, read
    sql                 read-only SQL over these tables: a room
    left                the trials left to run of every cell
    remote              results on s3://, gs:// and other file systems
    store               a results folder, opened
"""
