"""The plan: makes, solves and checks the cells of a sweep file, and estimates what a run will take.

It uses all rooms below it. It starts no Ray, and trains nothing but probes. In the results folder it writes only the
record of the data.

    split_sizes  counts the examples that a cell trains, validates and tests on
    base_model   facts about the base model, each computed once
    checks       checks that adapters attach, and that an allowance is enough for some trials
    plan         makes cells from a sweep file
    costs        computes memory, operations and saved bytes of a cell from shapes
    digests      computes digests of data and models, and finds examples that are in both splits
    inputs       checks data, weights and results folder before a sweep starts
    against      compares the plan with its paper: published numbers, and settings that differ
    disk_size    computes the bytes that kept weights will take
    estimate     estimates time, memory, disk and cost from a probe of every method
"""
