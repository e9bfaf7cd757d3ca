"""Functions that make sentences from computed numbers. No sentence claims more than was tested.

The room uses the rooms that compute the numbers. It draws and prints nothing.

    absent       data sets that were left out because their data was missing
    batch_sizes  the batch sizes that were searched and chosen
    conclusions  the sweep's answer, the gap to full fine-tuning, rank against parameters
    decisions    the best methods of a budget, and what would change that
    figures      one sentence for each figure
    parity       what was equal over all cells of a sweep, and what was not
    verdicts     the words of a verdict, and what a comparison can detect
    weak         weaknesses of the evidence, such as too few seeds
"""
