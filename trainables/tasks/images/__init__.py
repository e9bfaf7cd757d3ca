"""Classification of images with CLIP or an image encoder.

images  the image task, on a trained and on a frozen tower
clip    CLIP's classifiers: one tower trained, both, or a linear probe
vision  an image encoder with a new linear head
"""
