"""What a results folder shows: a module or a folder per finding, and the list of all findings.

In a folder, `finding` has the tables, captions and sentences, `numbers` computes, and `figure` draws. Only `figure`
imports matplotlib, and `finding` imports it when it draws. A new finding is a new file, or a folder if it has a figure.
It is imported and listed in `all`, and gets a line here (docs/architecture.md has an example).

    finding           the type `Finding`
    all               the list of all findings, and loops over it
    shared            columns, orders and names that several findings share
    answer            the sweep's answer to its question
    decisions         what to take at each budget, and what would change that
    results           score, difference and verdict of every cell
    scaling           score against trainable parameters; means over data sets
    ranking           all methods at the only budget, the best first
    comparisons       each method against the baseline, and whether the difference changes with the budget
    forest            all differences of the methods in question on one axis
    full_fine_tuning  each method against full fine-tuning
    groups            which methods of a budget are distinguishable
    seeds             how many seeds a difference needs
    rank              the effect of doubling the update's rank, and of doubling the parameters
    published         published numbers, and their curve beside ours
    fits              curves of score against a cost or training examples, and what is read off them
    front             the cells that no other beats in both score and cost
    currencies        who is ahead at equal parameters, memory, operations, bytes and time
    data_sizes        score against training examples
    diagnostics       what `sweeps analyze` measured
    parity            what was equal over all cells of a sweep, and what was not
    batch_sizes       the batch sizes that were searched and chosen
    tuning            scores by learning rate, the expected best of n, sharpness
    rate_ratio        best learning rates divided by the baseline's
    cost              what each method cost
    estimate          estimated against actual cost
    failures          failed attempts
    infeasible        cells that could not run
    weak              weaknesses of the evidence, such as too few seeds
    absent            data sets that were left out because their data was missing
"""
