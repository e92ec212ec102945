"""DICOM in and out, strict about geometry. pydicom and highdicom are imported where they are needed.

headers.py     what lies in a folder: image series, SEG, RTSTRUCT
series.py      one series as a volume
drawn.py       SEG and RTSTRUCT as masks on the grid of their series
convert.py     folders of DICOM -> a data set in nnU-Net's raw format
segmentation.py   a label map -> DICOM SEG
"""
