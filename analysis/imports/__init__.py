"""Write results from elsewhere into separate results folders, so that they can be queried and drawn like ours.

Uses `store` to write them and `findings.published` for what is shipped.

    importing  published numbers and PEFT's method_comparison; the rows of one imported number
    csv_table  a CSV table of published numbers
"""
