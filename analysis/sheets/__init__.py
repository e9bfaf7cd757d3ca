"""How a table looks: one type of table, and one writer for each form.

Other rooms say which rows and columns a table has.

    sheet     a sheet: rows, and columns that say how a cell's text is made and set
    columns   columns that many sheets share, and rows grouped for them
    terminal  a sheet on the terminal, and a console that is safe for names from outside (rich)
    html      a sheet in a page and in a notebook (jinja2; the macros are in `templates/`)
    markdown  a sheet as Markdown
    latex     a sheet as LaTeX
    data      a sheet as CSV and JSON; an Arrow table as CSV, JSON, Parquet and Arrow (pyarrow)
    forms     the forms of a sheet that are files
"""
