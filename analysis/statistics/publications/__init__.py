"""Published numbers, as JSON files beside the code that reads them.

Uses `scaling` of the room above.

    published  the publications by name, and the curve of one beside ours
"""
