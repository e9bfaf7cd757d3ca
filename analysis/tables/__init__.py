"""Tables as people read them: the results table of the terminal, and the sheets of the report.

A sheet says how the rows of an Arrow table are shown, the same in HTML, Markdown and LaTeX; other rooms compute them.

    sheet        a sheet, its columns, and what sheets share
    console      the results table at the end of a run, as a table and on the terminal
    terminal     what console prints to, without what it computes
    results      scores, comparisons, groups and ranks
    effects      differences over the budgets, and what rank and parameters bring
    fits         fits against a cost and against training examples, fronts, published numbers
    evidence     parity, tuning, cost, failures, infeasible cells
    diagnostics  what `sweeps analyze` measured
    export       a sheet as Markdown and as LaTeX
"""
