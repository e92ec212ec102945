"""Support sets of few-shot segmentation as data: labelled slices that stand for a task.

No network in here.

    view.py      the square view of a slice, and the way back
    pool.py      the labelled slices of a data set, resized once
    draw.py      which of them support a query
    episodes.py  queries with support sets of one task, for training; augment.py changes both
"""
