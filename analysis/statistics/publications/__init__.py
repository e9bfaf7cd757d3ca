"""Published numbers, as JSON files in folders beside the code that reads them.

Uses `scaling` of the room above.

    published  the publications by name, and the curve of one beside ours
    images     figures and tables of image models
    language   of language models
"""
