"""The engine: a plan is run, and a finished trial is trained again, a folder verified or analysed.

Uses all rooms below; `run` is what `sweeps.run` and the command line call. It knows no Ray, except for the tasks of
`analyze`: a backend runs the trials (`sweeps.backends`).

    prepare     what is checked before a run; the results folder, held
    run         a sweep's folder opened, what is missing run, everything closed
    runner      what is missing, run on one backend, and on the next one if that is lost
    loop        trials from the search to the backend, and what becomes of them into the ledger
    packing     which trials form a pack
    limits      caps on hours and cost, and the meter that is held against them
    rerun       one finished trial trained once more
    verifying   whether a results folder still says what its sweep wrote
    analyze     diagnostics as Ray tasks, or in this process
"""
