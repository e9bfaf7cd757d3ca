"""Statements whose unit is not the seed.

Uses `inference`, `runs` and `scaling` of the room above.

    examples  intervals over seeds and test examples
    many      five data sets or more: interquartile means, profiles, Wilcoxon's test
    mcnemar   two fixed checkpoints on the same test examples
"""
