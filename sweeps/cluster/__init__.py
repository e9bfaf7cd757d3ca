"""Ray itself: a session that starts or is joined, its machines, and signals around it.

Uses `spec`; knows nothing of trials, journals or lanes' work.

    nodes      the machines of a joined cluster, each asked whether it can work
    reaper     ends what Ray leaves behind when the driver is killed
    resources  what a sweep asks of machines, checked and cut into lanes
    session    a Ray session, from start or joining to its end without a trace
    signals    SIGINT and SIGTERM: a clean end, or one that waits
"""
