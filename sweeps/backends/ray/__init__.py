"""Lanes: Ray Train runs that stay warm and train trial after trial, and the broker that hands them the trials.

Uses `cluster`, `records`, `search`, `spec` and the trial functions of trainables. A trial's way: `tune` takes the next
slot from the search and submits it to the `broker`; a `worker` leases it, trains it and reports; `tune` takes the
outcome and the ledger writes it down. Packs (trials that share a base model) go the same way: `packs` forms them,
`broker` keeps them together or takes them apart, `packed_worker` runs them by `trainables.training.packed`.

    broker         the actor between driver and workers: queue, leases, reports, deaths
    groups         how the workers that share a trial find each other
    lanes          starts the lanes, keeps them up, ends them
    leases         one trial on its way through a lane, as the broker knows it
    memory         out of memory: smaller micro-batches
    packed_worker  a pack in a worker, from lease to outcomes
    packs          which trials share a worker, how many, and how workers share a GPU
    pool           session, broker and lanes of a sweep, from start to end
    proxy          the Tune trial, which has no process: Tune asks the broker
    reports        what a worker says of a trial that is over, and of its machine
    tune           Ray Tune's side: searcher and scheduler
    worker         what a lane's processes do: lease a trial, train it, report
"""
