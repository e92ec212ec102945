#!/usr/bin/env bash
# Evaluate the folds, and the test predictions where references exist.
# Written by nnunet_ext 0.1.0; read it, edit it, keep it.
#BSUB -J Dataset004_5_evaluate
#BSUB -o "/home/me/my jobs/logs/5_evaluate_%J.log"
#BSUB -r
#BSUB -n 4
#BSUB -R "span[hosts=1] rusage[mem=16384MB/host]"
#BSUB -M 16384MB
#BSUB -W 02:00
#BSUB -q cpu
#BSUB -P lab
#BSUB -u me@example.org
#BSUB -N
#BSUB -app nvidia

set -euo pipefail
module load cuda
folder='/home/me/my jobs'
export PATH=/home/me/venv/bin:"$PATH" PYTHONUNBUFFERED=1
cpus="${LSB_DJOB_NUMPROC:-1}"

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

nnunet_ext evaluate --folds /data/nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerSegMamba__nnUNetPlansSegMambaTiny__3d_fullres -n "$cpus"
nnunet_ext evaluate --folds /data/nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerExt__nnUNetPlans__3d_fullres -n "$cpus"
nnunet_ext evaluate -r /data/nnUNet_raw/Dataset004_Hippocampus/labelsTs -p '/home/me/my jobs/predictions/nnUNetTrainerSegMamba__nnUNetPlansSegMambaTiny__3d_fullres_postprocessed' -n "$cpus"
nnunet_ext evaluate -r /data/nnUNet_raw/Dataset004_Hippocampus/labelsTs -p '/home/me/my jobs/predictions/nnUNetTrainerExt__nnUNetPlans__3d_fullres_postprocessed' -n "$cpus"
touch "$folder/done/5_evaluate"
