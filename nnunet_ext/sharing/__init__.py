"""Trained models as one file, to be opened elsewhere.

archive.py   ZIP files of strangers: every member looked at before any is written
manifest.py  what such a file says of itself: origin, licence, training data, versions, a checksum per member
pack.py      a model's folder -> one file
install.py   one file, ours or nnU-Net's own -> folders that prediction opens
"""
