"""Methods that build more than the budget pays for, and what a training loop does for them.

Uses `randlora.methods.factored` and `lowrank`.

    hooks     the interface that a training loop calls
    bilevel   gradients of a held-out loss through one step
    ranks     what rank schedules share: terms, scores, budget
    adalora   AdaLoRA: triplets cut by importance
    autolora  AutoLoRA: ranks found by meta learning
"""
