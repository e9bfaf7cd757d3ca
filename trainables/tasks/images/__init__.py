"""Classification of images with CLIP or an image encoder.

This room uses the images of `data`, and `models`. Of texts it knows CLIP's prompts alone.

    images   the image task, on a trained or a frozen tower, and the classifier of image encoders
    clip     CLIP's classifiers: one tower trained, both, or a linear probe
    prompts  CLIP's classifiers with learnt prompts
"""
