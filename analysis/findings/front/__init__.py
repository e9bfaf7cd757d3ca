"""The Pareto front of score and cost, which `fits.pareto` computes.

Files:

    finding  table, caption, sentence
    figure   draws it
"""
