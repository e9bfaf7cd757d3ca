"""The budget solver: finds the capacity whose number of trainable parameters is nearest to a budget.

Budgets of other currencies, such as memory, are solved in the same way. It uses `spec` and randlora's registry. It
knows nothing of Ray, data or training.

    currencies  defines what a budget can limit
    reach       counts a method at every capacity, and spreads capacities over the layers
    solver      finds the capacity that is nearest to a budget
    solving     solves all budgets of a sweep file for a method
"""
