#!/usr/bin/env bash
# Train Dataset004_Hippocampus 3d_fullres: task = run x 5 + fold.
# Written by nnunet_ext 0.1.0; read it, edit it, keep it.
#SBATCH --job-name=Dataset004_2_train
#SBATCH --array=0-9%4
#SBATCH --output="/home/me/my jobs/logs/2_train_%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:1
#SBATCH --mem=65536M
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --mail-user=me@example.org
#SBATCH --mail-type=END,FAIL
#SBATCH --qos=long

set -uo pipefail
module load cuda
task=$SLURM_ARRAY_TASK_ID
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

trainers=(nnUNetTrainerSegMamba nnUNetTrainerExt)
plans=(nnUNetPlansSegMambaTiny nnUNetPlans)
folds=(0 1 2 3 4)
run=$((task / ${#folds[@]}))
fold=${folds[task % ${#folds[@]}]} trainer=${trainers[run]} plan=${plans[run]}
result="$nnUNet_results/Dataset004_Hippocampus/${trainer}__${plan}__3d_fullres/fold_$fold"
echo "$(date "+%F %T") $trainer $plan fold $fold on $(hostname)"
if [ -f "$result/validation/summary.json" ]; then
  echo "finished already"
  exit 0
fi

# What training reads, on the node's own disk. The name follows plans and folds; the rename makes the copy
# appear whole, also for a neighbour on this node that wants it too.
data=(nnUNetPlans_3d_fullres nnUNetPlans_3d_fullres)
scratch="$TMPDIR"
source="$nnUNet_preprocessed/Dataset004_Hippocampus"
key=$(cat "$source"/*.json | cksum | cut -d" " -f1)
copy="$scratch/nnunet_ext-$(id -u)-$key-${data[run]}"
if [ ! -d "$copy" ]; then
  mkdir -p "$scratch" && new=$(mktemp -d "$scratch/.nnunet_ext-XXXXXX") || exit 1
  inside="$new/Dataset004_Hippocampus"
  mkdir "$inside"
  cp -r "$source/${data[run]}" "$source/gt_segmentations" "$source"/*.json "$inside" || exit 1
  mv -T "$new" "$copy" 2> /dev/null || rm -rf "$new"
fi
[ -O "$copy" ] || { echo "cannot copy to $copy"; exit 1; }
export nnUNet_preprocessed="$copy"

# --c from the first time on: it continues where there is a checkpoint and begins where there is none.
nnUNetv2_train Dataset004_Hippocampus 3d_fullres "$fold" -tr "$trainer" -p "$plan" --c &
pid=$!
warned="" timer=""
tell() { kill "-$1" "$pid"; }
# Warned of the time limit: finish the epoch; if that takes too long, stop at the next batch.
trap 'warned=yes; tell USR1; sleep 240 & timer=$!' USR1
# Cancelled or preempted: stop at the next batch. Whoever preempts queues the task again.
trap 'tell TERM' TERM
while kill -0 "$pid" 2> /dev/null; do  # a trapped signal ends wait early
  wait -n "$pid" ${timer:+"$timer"}
  if [ -n "$timer" ] && ! kill -0 "$timer" 2> /dev/null; then tell TERM; timer=""; fi
done
trap '' USR1 TERM  # nor may one hide the status
wait "$pid"
status=$?
[ -z "$timer" ] || kill "$timer" 2> /dev/null
echo "$(date "+%F %T") $trainer $plan fold $fold ended with status $status"
# 85: all is saved. 138: the signal came before the trainer listened.
if [ -n "$warned" ] && [[ $status =~ ^(85|138)$ ]]; then
  [ "${SLURM_RESTART_COUNT:-0}" -lt 200 ] || { echo "queued 200 times already"; exit "$status"; }
  exec scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
