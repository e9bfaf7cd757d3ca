"""The report: one self-contained HTML page per results folder, with its figures and tables beside it.

Uses every room of `analysis` but the diagnostics' computations, whose results it reads from files.

    page       what is written, and the page drawn from its template
    facts      what the page says beside the findings
    foreign    what of an SVG file that may be anybody's stands in the page
    box        the facts of a sweep in a box: data, training, model, counts
    templates  the page's template and its script
"""
