"""Ray itself: a session that starts or is joined, its machines, and signals around it.

Uses `spec`; knows nothing of trials, journals or lanes' work.

    joining    which cluster an address names, and whether it answers
    nodes      the machines of a joined cluster, each asked whether it can work
    private    a local session's own folder and token
    reaper     ends what Ray leaves behind when the driver is killed
    resources  what a sweep asks of machines, checked and cut into lanes
    session    a Ray session, from start or joining to its end without a trace
    signals    SIGINT, SIGTERM and SIGHUP: a clean end, or one that waits
"""
