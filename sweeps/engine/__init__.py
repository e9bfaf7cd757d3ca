"""The engine: a plan is run, and what a finished sweep kept is exported, trained again or analysed.

Uses all rooms below; `run` is what `sweeps.run` and the command line call.

    limits   caps on hours and cost, and the meter that is held against them
    drive    Ray Tune's Tuners one after another, and how they are stopped
    run      a sweep's folder opened, lanes started, trials served, everything closed
    kept     trials that left their weights, by id, or the best by validation score
    export   a kept trial taken out of a results folder, with all that it takes to predict
    usage    README.md of what was taken out: code that loads it
    rerun    one finished trial trained once more
    analyze  diagnostics as Ray tasks
"""
