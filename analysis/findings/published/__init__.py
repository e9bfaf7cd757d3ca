"""Published numbers, as JSON files beside the code that reads them.

Files:

    publications  the publications by name, and the curve of one beside ours
    finding       table, caption, sentence
    figure        draws both curves
    images        figures and tables of image models
    language      of language models
"""
