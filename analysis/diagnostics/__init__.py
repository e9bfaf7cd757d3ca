"""Diagnostics of trained weights that a results folder kept: spectra, CKA, loss planes. The one room that needs torch.

Uses `trainables` to make a trial's model and data again, and `figures` to draw; its caller chooses who runs the units.

    weights    trials that kept their weights, and their updates
    units      units of work, and the rows that are missing
    bench      a trial's model, data and loss, under any weights
    spectrum   singular values, ranks, and what each method's form can hold of an update
    intruders  singular vectors of trained weights that the base weights do not have
    retention  loss on general text, before and after training
    full_rank  how probable it is that RandLoRA's update has full rank
    cka        activations compared with full fine-tuning's
    landscape  the loss over the plane through three models, and barriers between them
    further    scores of further tasks, by lm-eval
    analyze    a diagnostic planned, computed, drawn and said
"""
