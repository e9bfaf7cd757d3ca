"""Sentences made from numbers, never stronger than what was tested.

Uses the rooms that compute the numbers; draws and prints nothing.

    absent       the data sets that were not at hand
    batch_sizes  the batch sizes that were searched and chosen
    conclusions  the sweep's answer, the gap to full fine-tuning, rank against parameters
    decisions    the best methods of a budget, and what would change that
    figures      one sentence per figure, and on groups
    parity       what was equal over all cells, and what was not
    verdicts     the words of a verdict, and what a comparison can detect
    weak         what results rest on too little
"""
