"""The statistics of results: curves of means, paired comparisons, groups, rank effects, tuning and power.

The room uses `store`, `format` and `styles`. It neither draws nor makes sentences. Most functions return Arrow tables.
`runs` pairs scores by seed, and `inference` tests them.

    runs          confirmed runs by cell and by seed, and their mean over data sets
    inference     intervals (single and simultaneous), paired differences and their tests, Holm's correction, verdicts
    looks         interim analyses, the level that is left for each, and cells that were added later
    power         the smallest difference that a comparison can detect, and the seeds that it needs
    choice        what the choice of a learning rate adds to a comparison's uncertainty
    measures      the score and the held-out loss of the same runs, and which of them separates methods better
    scaling       the scaling curve, and every method against a baseline
    differences   the difference to a baseline over the budgets, with bands, and whether it changes
    groups        all methods of a budget against each other
    decisions     the best methods at each budget, their cost, and the seeds that would distinguish them
    rank_effects  the effect of doubling the update's rank, and of doubling the parameters
    tuning        scores against learning rates; the expected best of n
    best_rates    where the best learning rate of a cell lies, and its ratio to the baseline's
    examples      intervals over seeds and test examples
    sizing        the seeds a sweep needs, the differences it can detect, and its estimated against its actual cost
    publications  published numbers, and their curve beside ours
"""
