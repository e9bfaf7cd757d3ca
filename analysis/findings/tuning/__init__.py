"""What stage TUNE shows, in four findings.

Files:

    finding  tables, captions, sentences
    numbers  scores by learning rate, the expected best of n, sharpness
    figure   draws them
"""
