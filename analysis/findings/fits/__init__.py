"""Curves of score against a cost or against training examples. Nothing here is a test.

Files:

    finding   tables, caption, sentence
    isotonic  isotonic fits with bands over seeds, crossings, costs of a score and areas, as pure functions
    measured  a store's curves, against a cost or against training examples
    readings  tables of bands, crossings, scores' costs and areas
    pareto    the cells that no other beats in both score and cost
    figure    draws fits; panels against a cost
"""
