"""Data sets by name, their nested subsets, and the rule that tuning cannot see the test split.

This room uses `cache`, `config`, `digests`, `errors` and `seeds`. It knows nothing of models or training.

    images     image sets: reading, decoding, augmentation
    text       text sets: reading, prompts, batches of similar length
    facts      what is known of the registered sets; reads sets/images.toml and sets/texts.toml
    templates  prompt templates of image sets
    splits     what every data set has, and the rows that a trial trains, validates and reports on
    downloads  where downloads go, and whether they contain what was expected
    registry   data sets by name, of images and of text
"""
