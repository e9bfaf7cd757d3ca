"""From runs to a verdict, in the order of the steps. README.md beside this file says what each step does.

The room neither draws nor prints. Most functions return Arrow tables, or numbers for other steps.

    runs         confirmed runs by cell and by seed, paired differences by seed
    datasets     means of differences over data sets
    question     which method is compared with which baseline
    looks        interim analyses, the level that is left for each, and cells that were added later
    inference    intervals (single and simultaneous), paired differences and their tests
    noise        the noise of a run's validation score
    choice       what the choice of a learning rate adds to a comparison's uncertainty
    power        the smallest difference that a comparison can detect, and the seeds that it needs
    correction   Holm's correction
    verdicts     from corrected p values to a verdict, and its words
    comparisons  every method against a baseline at each budget
    groups       all methods of a budget against each other
"""
