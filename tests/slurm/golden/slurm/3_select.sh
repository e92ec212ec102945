#!/usr/bin/env bash
# Pool the folds, choose the best run, determine the post-processing.
# Written by nnunet_ext 0.1.0; read it, edit it, keep it.
#SBATCH --job-name=Dataset004_3_select
#SBATCH --output="/home/me/my jobs/logs/3_select_%j.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16384M
#SBATCH --time=02:00:00
#SBATCH --partition=cpu
#SBATCH --account=lab
#SBATCH --mail-user=me@example.org
#SBATCH --mail-type=END,FAIL
#SBATCH --qos=long

set -euo pipefail
module load cuda
folder='/home/me/my jobs'
export PATH=/home/me/venv/bin:"$PATH" PYTHONUNBUFFERED=1
cpus="${SLURM_CPUS_PER_TASK:-1}"

# nnU-Net would count the cores of the node; these are the allocation's.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export nnUNet_n_proc_DA=$((cpus > 1 ? cpus - 1 : 1))
export nnUNet_def_n_proc=$((cpus < 8 ? cpus : 8))
# Compiled kernels belong on the node's own disk.
cache="${TMPDIR:-/tmp}/nnunet_ext-cache-$(id -u)"
export TORCHINDUCTOR_CACHE_DIR="$cache/inductor" TRITON_CACHE_DIR="$cache/triton"
export NUMBA_CACHE_DIR="$cache/numba" TORCHINDUCTOR_COMPILE_THREADS=1
export nnUNet_raw=/data/nnUNet_raw
export nnUNet_preprocessed=/data/nnUNet_preprocessed
export nnUNet_results=/data/nnUNet_results
export NNUNET_EXT_EPOCHS=250

# The best by nnU-Net's own rule, and for every run whether keeping the largest component helps.
nnunet_ext slurm select -d Dataset004_Hippocampus -c 3d_fullres -f 0 1 2 3 4 -r nnUNetTrainerSegMamba__nnUNetPlansSegMambaTiny nnUNetTrainerExt__nnUNetPlans -n "$nnUNet_def_n_proc"
touch "$folder/done/3_select"
