"""Text sets: commonsense instructions and questions, problems with a number as answer, GLUE's sentences, E2E's
meanings, and completions or conversations of your own.

Uses the splits and downloads of `data`, and the epoch's order of `data.images.batches`.

    dataset       what a text set is, and how one is put together
    prompts       prompts, the choices written in them, and the answer in generated text
    instructions  sets from JSON files in LLM-Adapters' form
    problems      MetaMathQA and GSM8K, and sets like these from JSON files
    fine_tuning   prompts with completions, and conversations, in TRL's form
    looking       which id reads one's files; one file made into splits
    tables        GLUE and E2E from tables
    registry      text sets by name
    batches       batches of like length, and padding
"""
