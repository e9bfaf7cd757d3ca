"""The budget solver: which capacity gives a method a number of trainable parameters, exactly.

Uses `spec` and randlora's registry; knows nothing of Ray, data or training.

    reach    what a method counts at every capacity, and how capacities are spread over layers
    solver   the capacity nearest to a budget
    solving  every budget of a sweep file
"""
