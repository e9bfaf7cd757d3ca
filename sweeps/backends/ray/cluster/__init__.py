"""The cluster: a Ray session from its start, or from joining it, to its end, and the nodes that it has.

A local session is this process's own: it listens on loopback, asks for a token, and leaves nothing behind. A cluster
that was there before is found by its address, and each of its nodes is asked whether it can run trials. Nothing in this
room knows of trials or lanes.

    session      a Ray session, from start or joining to its end without a trace
    joining      which cluster an address names, and whether it answers
    nodes        the nodes of a joined cluster, each asked whether it can work
    private      a local session's own folder and token
    processes    Ray's own processes of a local session
"""
