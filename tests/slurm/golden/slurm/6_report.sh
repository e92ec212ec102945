#!/usr/bin/env bash
# Compare the runs on one page.
# Written by nnunet_ext 0.1.0; read it, edit it, keep it.
#SBATCH --job-name=Dataset004_6_report
#SBATCH --output="/home/me/my jobs/logs/6_report_%j.log"
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

nnunet_ext report /data/nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerSegMamba__nnUNetPlansSegMambaTiny__3d_fullres /data/nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerExt__nnUNetPlans__3d_fullres --test-set '/home/me/my jobs/predictions/nnUNetTrainerSegMamba__nnUNetPlansSegMambaTiny__3d_fullres_postprocessed' '/home/me/my jobs/predictions/nnUNetTrainerExt__nnUNetPlans__3d_fullres_postprocessed' -o "$folder/report.html" -n "$cpus"
touch "$folder/done/6_report"
