"""What results say of methods: curves of means, paired comparisons, groups, ranks, tuning, power, published numbers.

Uses `store`, `format` and `styles`; draws and words nothing. Every number comes as an Arrow table, paired by seed in
`runs`, tested in `inference`.

    runs          confirmed runs by cell and by seed, and their mean over data sets
    inference     intervals, alone and at once, one standard error for every test, Holm's correction, verdicts
    looks         looks at the test scores, the level that each leaves, and the cells that were declared first
    power         what a comparison can see, and the seeds that it needs, by simulation
    choice        what the choice of a learning rate adds to a comparison's uncertainty
    measures      the score and the held-out loss side by side, and which tells methods apart better
    scaling       the scaling curve, and every method against a baseline
    differences   the difference over the budgets, with bands, and whether it changes
    groups        all methods of a budget against each other
    decisions     at each budget the best methods, what they cost, and what would tell them apart
    rank_effects  what a doubling of the update's rank, or of the parameters, brings, and which more
    tuning        scores against learning rates; the expected best of n
    best_rates    where the best learning rate of a cell lies, and its ratio to the baseline's
    examples      intervals over seeds and test examples
    sizing        how large a sweep must be, and what it takes
    publications  published numbers, and the curve of them beside ours
"""
