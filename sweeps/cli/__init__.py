"""The command line: a file and a few verbs.

Uses every other room, each only when its verb runs, so that `--help` and Ctrl-C are answered at once.

    data      the verb `data`: registered data sets, and files of one's own
    doctor    the verb `doctor`: checks of this machine
    main      the program: its verbs in a table, and what bad input and interruptions give
    options   the options that verbs share, exit codes, and where the name of a sweep leads
    new_file  the verb `init`: a sweep file to start from
    plan      the verbs before a run: `plan`, `estimate`, `budget`
    power     the verb `power`: the smallest difference that a sweep will detect
    printing  how the verbs print: JSON, lines, tables
    program   the entry point, which imports nothing at first
    progress  how far a sweep is, as `status` and the page of `watch` show it
    results   the verbs that read results: `best`, `report`, `query`, `compare`, `tables`; and `import`
    run       the verb `run`
    status    the verb `status`: how far a sweep is
    trials    the verbs that take trials up again: `export`, `predict`, `again`, `analyze`
    verify    the verb `verify`: whether a results folder still says what its sweep wrote
    watching  the verb `watch`: a page that shows a sweep as it happens
"""
