"""Classification of images with CLIP or an image encoder.

Uses the images of `data`, and `models`; knows nothing of texts but CLIP's prompts.

    images   the image task, on a trained or a frozen tower, and the classifier of image encoders
    clip     CLIP's classifiers: one tower trained, both, or a linear probe
    prompts  CLIP's classifiers behind learnt prompts
"""
