"""The budget solver: which capacity gives a method a number of trainable parameters, or of another currency.

Uses `spec` and randlora's registry; knows nothing of Ray, data or training.

    currencies  what a budget can limit
    reach       what a method counts at every capacity, and how capacities are spread over layers
    solver      the capacity nearest to a budget
    solving     every budget of a sweep file
"""
