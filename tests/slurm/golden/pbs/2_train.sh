#!/usr/bin/env bash
# Train Dataset004_Hippocampus 3d_fullres: task = run x 5 + fold.
# Written by nnunet_ext 0.1.0; read it, edit it, keep it.
#PBS -N nn_2_train
#PBS -J 0-9%4
#PBS -j oe
#PBS -o "/home/me/my jobs/logs/"
#PBS -r y
#PBS -l select=1:ncpus=12:ngpus=1:mem=65536mb
#PBS -l walltime=24:00:00
#PBS -q gpu
#PBS -A lab
#PBS -M me@example.org
#PBS -m END,FAIL
#PBS -l place=free

set -uo pipefail
module load cuda
task=$PBS_ARRAY_INDEX
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

# PBS gives no warning before the time limit, so the script gives it to itself.
{ sleep 86100 && kill -USR1 $$; } &
alarm=$!
trap 'pkill -P "$alarm"' EXIT

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
  echo "submit this script again; what is finished is skipped"
  exit 85
fi
exit "$status"
