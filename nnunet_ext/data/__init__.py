"""Data sets in nnU-Net's raw format: checked, cleaned, fetched, converted, made.

Originals are only read.

    layout.py, volumes.py, inspect_case.py              what is on disk: the files, the bytes, one case
    check.py, cohort.py, findings.py                    what is wrong with a data set, and what to do about it
    check_page.py, thumbnails.py, forecast.py           the findings as a page; what training will need
    clean.py, clean_rules.py, holdout.py                copies: cleaned, or with held-out test cases
    fetch.py, msd.py, layouts_public.py, convert.py     public data sets
    phantoms.py                                         labelled volumes made of nothing, for `demo` and tests
"""
