"""Prompt learning on CLIP: learnt inputs of the towers, with or without the adapters of another method.

This room uses `randlora.model.prompted` and the registry's table.

    learners  the prompts of CoOp, CoCoOp, MaPLe and PromptSRC
    kinds     what each is called, counts, starts from and was trained with
    entry     makes a method from a name such as "prompt:maple+dept+lora"
"""
