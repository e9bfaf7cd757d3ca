"""Methods with a schedule: they build more than the budget pays for, and the training loop calls their hooks.

This room uses `randlora.methods.factored` and `lowrank`.

    hooks     the interface that a training loop calls
    bilevel   gradients of a held-out loss through one training step
    ranks     what rank schedules share: terms, scores, budget
    adalora   AdaLoRA: cuts triplets by importance
    autolora  AutoLoRA: finds ranks by meta learning
"""
