"""Read and write adapters on disk. `randlora.adapted.load` attaches what this room reads.

It uses `methods` and the rooms below. Of a model with adapters it uses what the protocol `checkpoint.Adapted` lists.

    tensors      safetensors with a digest, which is checked at every read
    sizes        the size of a saved adapter in bytes, from shapes alone
    checkpoint   this package's own format, dense deltas, and merged weights
    peft_lora    PEFT's LoRA format for any product of two thin matrices
    peft_export  writes a directory that PEFT reads
    peft_import  reads a directory that PEFT wrote
    peft_types   the settings of PEFT's types that are `peft:NAME` here
"""
