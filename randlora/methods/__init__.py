"""The methods: a configuration, the adapter of one weight, and an entry with exact counts for each.

Uses `adapter`, `model` and `arithmetic`; knows nothing of attaching, files or packing.

    method        what an entry holds, and the table of entries, with those of other packages
    factored      methods whose delta is one product of two thin matrices
    lowrank       LoRA and what trains its own factors
    random        methods over frozen random bases: VeRA, NoLA, RandLoRA and its ablations
    scheduled     methods that follow the training: AdaLoRA, AutoLoRA
    experimental  what the RandLoRA paper names as future work
    bridge        the methods of Hugging Face PEFT, by name
    prompts       prompt learning on CLIP, by name, alone or beside adapters
    registry      all of this package's entries, in order
"""
