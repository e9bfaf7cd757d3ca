"""Methods that train a weight's own factors.

This room uses `randlora.methods.factored`.

    lora      LoRA, its rank-stabilised scale, LoRA+, and DoRA
    starts    PiSSA, MiLoRA, OLoRA, Init[AB] and LoRA-GA: LoRA with other starts
    hydra     HydraLoRA: one A, several B, and a router
    spectral  LoRA-XS and SVFT, which train between singular vectors
"""
