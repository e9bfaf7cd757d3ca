"""Methods with trained factors of a weight's own.

Uses `randlora.methods.factored`.

    lora      LoRA, its rank-stabilised scale, and DoRA
    hydra     HydraLoRA: one A, several B, and a router
    spectral  PiSSA, LoRA-XS and SVFT, which start from singular vectors
"""
