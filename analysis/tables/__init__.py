"""A table as people read it, the same in HTML, Markdown and LaTeX. Findings make the tables.

Files:

    sheet     a sheet, its columns, and what sheets share
    terminal  how a table is printed
    export    a sheet as Markdown and as LaTeX, and as CSV
"""
