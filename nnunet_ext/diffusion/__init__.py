"""Diffusion over label maps: schedules, the process, samplers, fusion and uncertainty of samples.

No network in here: whatever predicts is passed in.

    schedule.py, process.py           how much of the image is left after each step; forward process and posterior
    samplers.py, sampling.py          DDPM, DDIM, DPM-Solver++(2M); their settings, and noise that repeats
    fusion.py, votes.py               one segmentation out of several samples: mean, majority, STAPLE
    fusion_plain.py                   STAPLE as its equations have it, which `fusion.py` is compared with
    uncertainty.py, samples_file.py   how much samples differ; samples on disk
"""
