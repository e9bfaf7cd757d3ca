"""The command line: one function for each verb of the program `sweeps`.

It uses every other room, but imports it only when a verb needs it, so that `--help` and Ctrl-C are answered at once.

    data      the verb `data`: registered data sets, and your own files
    doctor    the verb `doctor`: checks of this machine
    main      the program: the table of verbs, and the handling of bad input and interruptions
    options   options that verbs share, exit codes, and the functions that find a sweep's results
    new_file  the verb `init`: a sweep file to start from
    plan      the verbs before a run: `plan`, `estimate`, `budget`
    power     the verb `power`: the smallest difference that a sweep will detect
    printing  the streams, and what verbs print on them: JSON, names, notes, progress
    program   the entry point, which imports nothing at first
    progress  puts how far a sweep is into JSON values and sentences, for `status` and the page of `watch`
    results   the verbs that read results: `best`, `report`, `query`, `compare`, `tables`; and `import`
    run       the verb `run`
    status    the verb `status`: how far a sweep is
    trials    the verbs that use trials of a sweep: `export`, `predict`, `again`, `analyze`
    verify    the verbs `verify` and `versions`: whether a results folder is as its sweep wrote it, and its packages
    watching  the verb `watch`: a page that shows a sweep as it happens
"""
