"""Data sets by name, their nested subsets, and the rule that tuning can't see the test split."""
