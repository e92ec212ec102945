#!/usr/bin/env bash
# Submits every step; each waits for all tasks of the step before it. jobs.txt keeps step, job and tasks.
set -euo pipefail
cd '/home/me/my jobs'
mkdir -p logs "done" && rm -f done/*

prepare=$(qsub 1_prepare.sh)
echo "1_prepare $prepare -" | tee -a jobs.txt

train=$(qsub -W depend=afterok:"$prepare" 2_train.sh)
echo "2_train $train 0-9" | tee -a jobs.txt

select=$(qsub -W depend=afterok:"$train" 3_select.sh)
echo "3_select $select -" | tee -a jobs.txt

predict=$(qsub -W depend=afterok:"$select" 4_predict.sh)
echo "4_predict $predict 0-1" | tee -a jobs.txt

evaluate=$(qsub -W depend=afterok:"$predict" 5_evaluate.sh)
echo "5_evaluate $evaluate -" | tee -a jobs.txt

report=$(qsub -W depend=afterok:"$evaluate" 6_report.sh)
echo "6_report $report -" | tee -a jobs.txt
