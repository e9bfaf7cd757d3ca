"""Makes the embedded model and data set, and calibrates the quickstart on them."""
