"""Methods that train vectors between frozen random bases, which all layers share.

This room uses `randlora.methods.factored`.

    vera       VeRA, and its cheap product
    nola       NoLA: factors that are trained sums of random ones
    randlora   RandLoRA: full rank from random bases
    ablations  RandLoRA-a and -b: the same number of parameters at another rank
"""
