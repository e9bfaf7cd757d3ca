"""The model and the image sets that come with the package: data, no code."""
