#!/usr/bin/env bash
# Predict the test images with all folds: task = run.
# Written by nnunet_ext 0.1.0; read it, edit it, keep it.
#BSUB -J "Dataset004_4_predict[1-2]"
#BSUB -o "/home/me/my jobs/logs/4_predict_%J_%I.log"
#BSUB -r
#BSUB -n 12
#BSUB -R "span[hosts=1] rusage[mem=65536MB/host]"
#BSUB -M 65536MB
#BSUB -gpu "num=1:mode=exclusive_process"
#BSUB -W 24:00
#BSUB -q gpu
#BSUB -P lab
#BSUB -u me@example.org
#BSUB -N
#BSUB -app nvidia

set -euo pipefail
module load cuda
folder='/home/me/my jobs'
task=$((LSB_JOBINDEX - 1))
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

trainers=(nnUNetTrainerSegMamba nnUNetTrainerExt)
plans=(nnUNetPlansSegMambaTiny nnUNetPlans)
trainer=${trainers[task]} plan=${plans[task]}
name=${trainer}__${plan}__3d_fullres
workers=$((cpus < 3 ? 1 : 3))
nnUNetv2_predict -d Dataset004_Hippocampus -i /data/nnUNet_raw/Dataset004_Hippocampus/imagesTs -o "$folder/predictions/$name" -tr "$trainer" -p "$plan" -c 3d_fullres -f 0 1 2 3 4 -npp "$workers" -nps "$workers"
pooled="$nnUNet_results/Dataset004_Hippocampus/$name/crossval_results_folds_0_1_2_3_4"
final="$folder/predictions/${name}_postprocessed"
nnUNetv2_apply_postprocessing -i "$folder/predictions/$name" -o "$final" -np "$nnUNet_def_n_proc" -pp_pkl_file "$pooled/postprocessing.pkl" -plans_json "$pooled/plans.json"
cp "$pooled/dataset.json" "$final"
touch "$folder/done/4_predict_$task"
