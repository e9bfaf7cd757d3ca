"""Figures: each draws a table that another room computed, and one function draws it in every form.

Uses matplotlib without pyplot, and every room below; knows nothing of the page.

    drawing      what all figures share: their look, panels, markers and legend, and how they are written
    scaling      score against trainable parameters
    differences  the paired difference to a baseline against the budget
    forest       all differences of the question's methods on one axis, with their means
    ranking      all methods at one budget, the best first
    rank         score against the rank of the update
    fits         fitted curves, Pareto fronts, data-size curves, published curves
    tuning       stage TUNE: learning rates, and the expected best of n of them
    diagnostics  spectra, CKA and loss planes of trained weights
    svg          a figure as inline SVG, with the page's colours and hover texts
    pictures     every figure of the report, with its caption and its sentence
"""
