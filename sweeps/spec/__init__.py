"""The sweep file: its sections as types, checks of one section against another, and the cell, which a plan makes.

It uses `randlora`'s registry and `trainables`. Nothing here solves a budget, starts a trial or touches Ray.

    space         the searched hyperparameters other than the learning rate, and points of a search
    search        `[search]`, learning-rate ranges and search spaces
    resources     `[resources]` and `[limits]`
    sections      the other sections, and all of them together
    methods       the methods that a sweep file may name under `[methods]`, and their published rates
    batch_sizes   checks the batch sizes that are searched, and the settings beside them
    search_space  makes the searched hyperparameters of each method from `[search.space]`
    reading       reads TOML, YAML or JSON as a tree of values, within limits
    messages      turns pydantic's errors into problems of a sweep file
    paths         makes paths in ids of models and data absolute, for workers
    checks        checks one section against another: options, spaces, priorities
    spec          `SweepSpec`: reads a file, applies overrides and forms, and checks it
    schema        makes the JSON schema of sweep files, for editors
    task_checks   checks whether a kind of model can do what the file asks for
    solution      the answers of the budget solver
    cell          one model, data set, training size, method and budget, and the trials it can make
"""
