"""The verb `watch`: serves a web page on this machine that shows a sweep while it runs, from its results folder alone.

It uses `status`, the report's figures and the store's SQL. Nothing here writes files.

    verb       the verb `watch`, and the page beside a run, in another process
    keys       the token of the page, and the key with which a browser is started
    server     checks who may see the page, and sends changes while the sweep runs
    page       makes the sections of the page as HTML
    templates  the page and its script
"""
