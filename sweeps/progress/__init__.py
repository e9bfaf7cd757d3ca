"""How far a sweep is: trials that ended, run and are to come, its speed, time left, cost and failures.

Every display, `sweeps status` and the page of `watch` show one value, `SweepProgress`, and compute nothing of it
(decision 0020). It uses `search`, which says what a running engine has still to run. Only `of_state` imports that, so
`status` starts at once.

    failures   a failed trial, and where it was raised
    of_folder  reads the progress of a results folder
    of_state   reads the progress of a running engine's state
    progress   `SweepProgress`: how far each cell is, and the totals that follow
    used       computes the hours and the cost that all runs of a sweep used
"""
