"""Text sets: commonsense instructions and questions, worked problems, GLUE's sentences, E2E's meanings, and own texts.

This room uses the facts, splits and downloads of `data`, and the epoch's order of `data.images.batches`.

    dataset       what a text set is, and how one is put together
    prompts       prompts, the choices written in them, and the answer in generated text
    instructions  sets from JSON files in LLM-Adapters' form
    problems      MetaMathQA and GSM8K, and similar sets from JSON files
    fine_tuning   prompts with completions, and conversations, in TRL's form
    looking       finds the id that reads given files; divides one file into splits
    tables        GLUE and E2E from tables
    registry      text sets by name, and how each is loaded
    batches       batches of similar length, and padding
"""
