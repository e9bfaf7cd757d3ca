"""The backend on Ray. Lanes are Ray Train runs that stay up and train trial after trial; a broker hands them trials.

An order's way: the engine's process passes it to the driver's (`process`); `backend` queues it at the `broker` and
gives it to Tune (`tune`); a `worker` leases it, trains it and reports; Tune asks the broker for the reports (`proxy`)
and passes them on; `backend` takes the outcome, and the engine writes it down.

    process      Ray's driver in a process of its own, so that Ray's death is not the sweep's
    backend      what the engine asks, in the process with the Ray session
    tune         Ray Tune's side: a searcher and a scheduler that pass on what the engine says
    proxy        the Tune trial, which has no process: Tune asks the broker
    pool         session, broker and lanes of a sweep, from start to end
    broker       the actor between driver and workers: queue, leases, reports, deaths
    leases       one trial on its way through a lane, as the broker knows it
    lanes        starts the lanes, keeps them up, ends them
    groups       how the workers that share a trial find each other
    worker       what a lane's processes do: lease a trial, train it, report
    line         a worker's line to the broker
    session      a Ray session, from start or joining to its end without a trace
    joining      which cluster an address names, and whether it answers
    nodes        the nodes of a joined cluster, each asked whether it can work
    private      a local session's own folder and token
    compat       the private names of Ray that are left, each with its reason
    processes    Ray's own processes of a local session
    controllers  what runs in the controllers of lanes
"""
