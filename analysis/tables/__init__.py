"""Tables as people read them: the results table of the terminal, and the sheets of the report.

Other rooms compute the rows. `analysis.sheets` writes a sheet in every form.

    console      the results table at the end of a run, as a table and on the terminal
    results      scores, comparisons, groups and ranks
    effects      differences over the budgets, and what rank and parameters bring
    fits         fits against a cost and against training examples, fronts, published numbers
    evidence     parity, tuning, cost, failures, infeasible cells
    diagnostics  what `sweeps analyze` measured
"""
