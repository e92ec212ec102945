#!/usr/bin/env bash
# Compare the runs on one page.
# Written by nnunet_ext 0.1.0; read it, edit it, keep it.
#BSUB -J Dataset004_6_report
#BSUB -o "/home/me/my jobs/logs/6_report_%J.log"
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

nnunet_ext report /data/nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerSegMamba__nnUNetPlansSegMambaTiny__3d_fullres /data/nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerExt__nnUNetPlans__3d_fullres --test-set '/home/me/my jobs/predictions/nnUNetTrainerSegMamba__nnUNetPlansSegMambaTiny__3d_fullres_postprocessed' '/home/me/my jobs/predictions/nnUNetTrainerExt__nnUNetPlans__3d_fullres_postprocessed' -o "$folder/report.html" -n "$cpus"
touch "$folder/done/6_report"
