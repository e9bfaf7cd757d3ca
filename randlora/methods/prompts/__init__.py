"""Prompt learning on CLIP: learnt inputs of the towers, alone or beside the adapters of another method.

Uses `randlora.model.prompted` and the registry's table.

    learners  the prompts of CoOp, CoCoOp, MaPLe and PromptSRC
    kinds     what each is called, counts, starts from and was trained with
    entry     a name such as "prompt:maple+dept+lora" as a method
"""
