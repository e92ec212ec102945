"""One `nnUNetTrainer` per file.

nnU-Net finds them through the rows in `models/`.

    segmamba.py, unetrpp.py, sam_med3d.py, medsegdiff.py, universeg.py   the models
    adapted.py  any network named by its path
    plain.py    nnU-Net's own network under the same conditions
    shared.py   `SharedTrainer`, which they all are: settings, signals, a guard against NaN, records; on top of
                checkpoints.py and failures.py
    settings.py, recipe.py, run_record.py, tensorboard.py      its parts: variables, updates, run.json, scalars
"""
