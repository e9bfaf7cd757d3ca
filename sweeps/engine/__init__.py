"""The engine: runs a plan, trains a finished trial again, and verifies or analyses a results folder.

It uses all rooms below it. `sweeps.run` and the command line call `run`. A backend runs the trials (`sweeps.backends`):
only `analyze` knows Ray.

    prepare     makes all checks before a run, and locks the results folder
    run         opens a sweep's folder, runs the missing trials, and closes everything
    runner      runs the missing trials on a backend, and opens it again if it is lost
    loop        takes trials from the search, gives them to the backend, and records what happens
    limits      measures the used hours and cost, and compares them with the sweep's limits
    rerun       trains one finished trial again
    verifying   checks whether a results folder is as its sweep wrote it
    versions    compares versions of packages: installed, tested, and those of a sweep
    analyze     computes diagnostics in Ray tasks, or in this process
"""
