"""Cross-validations as batch jobs, for Slurm, LSF, PBS or no scheduler.

Scripts are for reading; what has been edited is never replaced.

    compose.py, pipeline.py            from what a user types to the steps of a cross-validation
    job.py, dialects.py, folder.py     a job as text, in each scheduler's words; the folder that holds all of it
    prepare.py, select.py              what the first step and the choice of the best run do
    queue.py, progress.py, status.py   the queue, the files nnU-Net writes, and both joined
    resume.py, local.py                unfinished folds again; the same scripts without a scheduler
"""
