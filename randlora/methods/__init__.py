"""The methods. Each has a configuration, an adapter for one weight, and an entry with exact counts.

This room uses `adapter`, `model` and `arithmetic`. It knows nothing of attaching, files or packing.

    method        what an entry contains; the table of entries, with those of other packages
    factored      methods whose delta is one product of two thin matrices
    lowrank       LoRA, and methods that train their own factors
    random        methods with frozen random bases: VeRA, NoLA, RandLoRA and its ablations
    scheduled     methods that follow the training: AdaLoRA, AutoLoRA
    experimental  methods that the RandLoRA paper names as future work
    bridge        the methods of Hugging Face PEFT, by name
    prompts       prompt learning on CLIP, by name, with or without adapters
    registry      all entries of this package, in order
"""
