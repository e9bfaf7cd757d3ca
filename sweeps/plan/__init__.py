"""The plan: every cell of a sweep file solved and checked, and what running it would take.

Uses all rooms below; trains probes alone and starts no Ray. It writes the results folder's record of its data.

    split_sizes  how many examples a cell trains, validates and tests on
    base_model   what is known of the base model, each thing asked once
    checks       adapters that attach, and an allowance that holds enough trials
    plan         from a specification to cells
    digests      data as it is now: bytes of every example, and those that are in both splits
    inputs       data and folder, looked at before a sweep starts
    against      the plan beside its paper: published numbers, and settings that differ
    packing      which methods' trials share a worker
    disk_size    bytes that kept weights will take
    estimate     time, memory, disk and cost, from a probe of every method
"""
