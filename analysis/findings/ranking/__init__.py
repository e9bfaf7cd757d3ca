"""All methods at the only budget of a sweep.

Files:

    finding  caption and sentence
    figure   draws it
"""
