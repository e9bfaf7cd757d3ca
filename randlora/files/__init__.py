"""Adapters on disk. Reads and writes only; `randlora.adapted.load` attaches what it finds.

Uses `methods` and below, and of a model with adapters what the protocol `checkpoint.Adapted` says.

    tensors      safetensors with a digest, checked whenever they are read
    sizes        bytes of a saved adapter, from shapes alone
    checkpoint   this package's own form, dense deltas, and merged weights
    peft_lora    PEFT's LoRA form of any product of two thin matrices
    peft_export  a directory that PEFT reads
    peft_import  a directory that PEFT wrote
    peft_types   the settings of those of its types that are `peft:NAME` here
"""
