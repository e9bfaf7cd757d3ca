"""The verb `watch`: a page of this machine that shows a sweep as it happens, from its results folder alone.

Uses `status`, the report's figures and the store's SQL; nothing here writes.

    verb       `watch`, and the page beside a run, in a process of its own
    keys       the token, and what a browser is started with
    server     who may see the page, and what it is sent as the sweep goes on
    page       its sections as HTML
    templates  the page and its script
"""
