"""Methods that train vectors between frozen random bases, which all layers share.

Uses `randlora.methods.factored`.

    vera       VeRA, and its lean product
    nola       NoLA: factors as trained sums of random ones
    randlora   RandLoRA: full rank from random bases
    ablations  RandLoRA-a and -b: equal parameters at another rank
"""
