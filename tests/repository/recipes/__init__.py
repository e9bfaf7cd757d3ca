"""The recipes of `examples/paper`: what they plan, that they start, that their small forms train."""
