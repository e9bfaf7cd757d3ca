"""The backend on Ray. Lanes are Ray Train runs that stay up and train trial after trial; a broker hands them trials.

An order's way: the engine's process passes it to the driver's (`process`); `backend` queues it at the `broker` and
gives it to Tune (`tune`); a `worker` leases it, trains it and reports; Tune asks the broker for the reports (`proxy`)
and passes them on; `backend` takes the outcome, and the engine writes it down.

    process      runs Ray's driver in a separate process, so that the sweep survives if Ray dies
    backend      the backend itself, in the process with the Ray session
    tune         Ray Tune's side: a searcher and a scheduler that pass on what the engine decides
    proxy        the Tune trial, which has no process: Tune asks the broker
    pool         session, broker and lanes of a sweep, from start to end
    lanes        the room of lanes, their workers and the broker
    cluster      the room of Ray sessions and the nodes of a joined cluster
    compat       the private names of Ray that this package uses, each with its reason
"""
