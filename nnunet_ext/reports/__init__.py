"""Pages, tables and pictures of results.

Numbers are those of `evaluation/`; nothing here measures.

    runs.py, evaluation_file.py, training_records.py, resources.py   what the files of a method say
    comparison.py, checks.py                                         statistics of several methods; is it fair?
    tables.py, methods_text.py                                       CSV, Markdown, LaTeX, JSON; text for a paper
    plots.py, figure_set.py, overlays.py, render.py                  the page: plots, slices, one HTML file
    figures.py, clicks.py, support_curve.py, uncertainty.py          pictures of one method
"""
