"""Curves through scores: against a cost, against training examples, and what is read off them.

Uses `statistics` for the confirmed runs. None of it is a test, and none enters a Holm family.

    fits      isotonic fits with bands over seeds, crossings, costs of a score and areas, as pure functions
    measured  a store's curves, against a cost or against training examples
    readings  tables of bands, crossings, scores' costs and areas
    pareto    the cells that no other beats in both score and cost
"""
