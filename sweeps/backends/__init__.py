"""Backends: what runs the trials that the engine hands out, on Ray or in this process.

A backend decides nothing: `backend` says what the engine asks of one. Uses `records` for a file, `spec`, and the trial
functions of trainables. Other packages add backends by an entry point (`registry`).

    backend    the interface: orders, events, what a backend is opened with
    registry   backends by name
    resources  what a sweep asks of machines, checked and cut into lanes
    needs      what trials need of a node: files, methods, modules
    signals    SIGINT, SIGTERM and SIGHUP: a clean end, or one that waits
    inline     trials one after another in this process
    ray        trials on a Ray cluster: Tune holds them, lanes of Ray Train run them
    trials     one trial in a worker's process, with less memory if it needs
    packed     several trials in a worker's process, on one copy of the base model
    packs      how many trials share a worker, and how workers share a GPU
    memory     out of memory: smaller micro-batches
    reports    what a worker says of a trial that is over, and of its node
"""
