"""Ray itself: a session that starts or is joined, its machines, and signals around it.

Uses `spec`; knows nothing of trials, journals or lanes' work.

    compat     Ray's private names, each with its reason; which releases of Ray work
    joining    which cluster an address names, whether it answers, and whether its Ray is this one's
    nodes      the machines of a joined cluster, each asked whether it can work
    private    a local session's own folder and token
    processes  the processes of a local session, and the end of those that are left
    resources  what a sweep asks of machines, checked and cut into lanes
    session    a Ray session, from start or joining to its end without a trace
    signals    SIGINT, SIGTERM and SIGHUP: a clean end, or one that waits
"""
