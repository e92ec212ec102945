"""Cross-validations as batch jobs: readable scripts for Slurm (or LSF, PBS, no scheduler), their state, resumption."""
