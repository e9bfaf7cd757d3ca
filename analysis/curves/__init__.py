"""Curves of score against a cost or against training examples, and numbers that are read off them.

The room uses `statistics` for the confirmed runs. Nothing here is a test, so nothing is part of a Holm family.

    fits      isotonic fits with bands over seeds, crossings, costs of a score and areas, as pure functions
    measured  a store's curves, against a cost or against training examples
    readings  tables of bands, crossings, scores' costs and areas
    pareto    the cells that no other beats in both score and cost
"""
