"""The sweep file: its sections as types, the checks of one against another, and the cell, which a plan makes of it.

Uses `randlora`'s registry and `trainables`; nothing here solves a budget, starts a trial or touches Ray.

    space         hyperparameters that are searched beside the learning rate, and points of such a search
    search        `[search]`, and what is written like it: learning-rate ranges and spaces
    resources     `[resources]` and `[limits]`
    sections      the other sections, and all of them together
    methods       what a sweep file may name under `[methods]`, and what is published of it
    batch_sizes   the batch sizes that are searched, and what they rule out
    search_space  from `[search.space]` to what each method searches
    reading       TOML, YAML or JSON to a tree of values, within limits
    messages      pydantic's errors as problems of a sweep file
    paths         ids with a path in them: as written, and made absolute for workers
    checks        section against section: options, spaces, priorities
    spec          `SweepSpec`: a file read, overridden, scaled down and checked
    schema        the JSON schema of sweep files, for editors
    task_checks   what a kind of model can be asked to do
    solution      what the budget solver answers
    cell          one model, data set, training size, method and budget, and the trials it can make
"""
