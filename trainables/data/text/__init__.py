"""Text sets: commonsense instructions and questions, GLUE's sentences, E2E's meanings.

Uses the splits and downloads of `data`, and the epoch's order of `data.images.batches`.

    dataset       what a text set is, and how one is put together
    prompts       prompts, the choices written in them, and the answer in generated text
    instructions  sets from JSON files in LLM-Adapters' form
    tables        GLUE and E2E from tables
    registry      text sets by name
    batches       batches of like length, and padding
"""
