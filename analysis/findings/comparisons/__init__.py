"""Each method against the baseline at the same budget. `analysis.verdict.comparisons` computes and tests.

Files:

    finding  tables, figure of differences, sentences
    sheet    the table of comparisons with any baseline
    numbers  the difference over the budgets, with bands, and whether it changes
    figure   draws the differences
"""
