#!/usr/bin/env bash
# Submits every step; each waits for all tasks of the step before it. jobs.txt keeps step, job and tasks.
set -euo pipefail
cd '/home/me/my jobs'
mkdir -p logs "done" && rm -f done/*

prepare=$(bsub < 1_prepare.sh | sed -n 's/^Job <\([0-9]*\)>.*/\1/p')
echo "1_prepare $prepare -" | tee -a jobs.txt

train=$(bsub -w "done($prepare)" -ti < 2_train.sh | sed -n 's/^Job <\([0-9]*\)>.*/\1/p')
echo "2_train $train 0-9" | tee -a jobs.txt

select=$(bsub -w "done($train)" -ti < 3_select.sh | sed -n 's/^Job <\([0-9]*\)>.*/\1/p')
echo "3_select $select -" | tee -a jobs.txt

predict=$(bsub -w "done($select)" -ti < 4_predict.sh | sed -n 's/^Job <\([0-9]*\)>.*/\1/p')
echo "4_predict $predict 0-1" | tee -a jobs.txt

evaluate=$(bsub -w "done($predict)" -ti < 5_evaluate.sh | sed -n 's/^Job <\([0-9]*\)>.*/\1/p')
echo "5_evaluate $evaluate -" | tee -a jobs.txt

report=$(bsub -w "done($evaluate)" -ti < 6_report.sh | sed -n 's/^Job <\([0-9]*\)>.*/\1/p')
echo "6_report $report -" | tee -a jobs.txt
