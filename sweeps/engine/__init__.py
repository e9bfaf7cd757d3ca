"""The engine: a plan is run, and what a finished sweep kept is exported, trained again or analysed.

Uses all rooms below; `run` is what `sweeps.run` and the command line call. It knows no Ray, except for the tasks of
`analyze`: a backend runs the trials (`sweeps.backends`).

    prepare     what is checked before a run; the results folder, held
    run         a sweep's folder opened, what is missing run, everything closed
    runner      what is missing, run on one backend, and on the next one if that is lost
    loop        trials from the search to the backend, and what becomes of them into the ledger
    packing     which trials form a pack
    limits      caps on hours and cost, and the meter that is held against them
    kept        trials that left their weights, by id, or the best by validation score
    export      a kept trial taken out of a results folder, with all that it takes to predict
    usage       README.md of what was taken out: code that loads it
    card        README.md with metadata and scores, of a model and of results as a data set
    dataset     a results folder as a data set
    comparison  tuned cells as experiments of PEFT's method_comparison
    hub         a folder sent to the Hugging Face Hub
    rerun       one finished trial trained once more
    verifying   whether a results folder still says what its sweep wrote
    analyze     diagnostics as Ray tasks, or in this process
"""
