"""Drawing helpers that the figures of all findings share.

Only `charts` and `svg` import matplotlib, without pyplot.

    charts   the look of all figures, panels, markers and legend, and how they are written
    svg      a figure as inline SVG, with the page's colours and hover texts
    picture  a figure with its caption and its sentence
"""
