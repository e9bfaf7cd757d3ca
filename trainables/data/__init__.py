"""Data sets by name, their nested subsets, and the rule that tuning can't see the test split.

Uses `cache`, `config`, `digests`, `errors` and `seeds`; knows nothing of models or training.

    images     image sets: reading, decoding, augmentation
    text       text sets: reading, prompts, batches of like length
    splits     what every data set has, and the rows that a trial trains, validates and reports on
    downloads  where downloads go, and whether what came is what was expected
    registry   data sets by name, of images and of text
"""
