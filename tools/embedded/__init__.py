"""Make the embedded model and its data sets, and calibrate the quickstart on them."""
