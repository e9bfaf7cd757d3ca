"""Methods with trained factors of a weight's own.

Uses `randlora.methods.factored`.

    lora      LoRA, its rank-stabilised scale, LoRA+, and DoRA
    starts    PiSSA, MiLoRA, OLoRA, Init[AB] and LoRA-GA: LoRA from other starts
    hydra     HydraLoRA: one A, several B, and a router
    spectral  LoRA-XS and SVFT, which train between singular vectors
"""
