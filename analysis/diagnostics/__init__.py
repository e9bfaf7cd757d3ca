"""Diagnostics of the trained weights in a results folder, such as spectra, CKA and loss planes.

This is the only room of the package that needs torch. It uses `trainables` to make a trial's model and data again, and
`findings.diagnostics` to draw. The caller decides whether this process or Ray runs the units.

    weights    trials that kept their weights, and their updates
    units      units of work, and the rows that are missing
    bench      a trial's model, data and loss, under any weights
    spectrum   singular values and ranks of updates, and how well each method could approximate full fine-tuning
    intruders  singular vectors of trained weights that the base weights do not have
    retention  loss on general text, before and after training
    image_retention  accuracy on another set of images, before and after training
    curvature  the curvature of the training loss at the start of each cell, beside the rate it chose
    full_rank  how probable it is that RandLoRA's update has full rank
    cka        activations compared with full fine-tuning's
    landscape  the loss over the plane through three models, and barriers between them
    further    scores of further tasks, by lm-eval
    analyze    plans and computes a diagnostic, draws it, and makes its sentence
"""
