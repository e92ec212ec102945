#!/usr/bin/env bash
# Plan, preprocess and split Dataset004_Hippocampus.
# Written by nnunet_ext 0.1.0; read it, edit it, keep it.
#PBS -N nn_1_prepare
#PBS -j oe
#PBS -o "/home/me/my jobs/logs/"
#PBS -r y
#PBS -l select=1:ncpus=8:mem=32768mb
#PBS -l walltime=08:00:00
#PBS -q cpu
#PBS -A lab
#PBS -M me@example.org
#PBS -m END,FAIL
#PBS -l place=free

set -euo pipefail
module load cuda
folder='/home/me/my jobs'
export PATH=/home/me/venv/bin:"$PATH" PYTHONUNBUFFERED=1
cpus="${NCPUS:-1}"

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

# Plans and preprocesses what is not there yet, and writes the folds before anyone trains.
nnunet_ext slurm prepare -d Dataset004_Hippocampus -c 3d_fullres -p nnUNetPlans nnUNetPlansSegMambaTiny -n "$nnUNet_def_n_proc"
touch "$folder/done/1_prepare"
