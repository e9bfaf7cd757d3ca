"""Backends: what runs the trials that the engine hands out, on Ray or in this process.

A backend decides nothing: `backend` says what the engine asks of one. Uses `records` for a file, `spec`, and the trial
functions of trainables. Other packages add backends by an entry point (`registry`).

    backend    the interface: orders, events, what a backend is opened with
    registry   backends by name
    resources  what a sweep asks of machines, checked and cut into lanes
    needs      what trials need of a node: files, methods, modules
    signals    SIGINT, SIGTERM and SIGHUP: end a sweep cleanly, or after a block that must not be interrupted
    inline     trials one after another in this process
    ray        trials on a Ray cluster: Tune holds them, lanes of Ray Train run them
    trials     what a worker's process does with orders, from configurations to outcomes
    memory     out of memory: smaller micro-batches
    reports    makes the outcome of a trial that has ended, with facts about its node
"""
