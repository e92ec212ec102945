#!/usr/bin/env bash
# Submits every step; each waits for all tasks of the step before it. jobs.txt keeps step, job and tasks.
set -euo pipefail
cd '/home/me/my jobs'
mkdir -p logs "done" && rm -f done/*

prepare=$(sbatch --parsable 1_prepare.sh)
prepare=${prepare%%;*}
echo "1_prepare $prepare -" | tee -a jobs.txt

train=$(sbatch --parsable --dependency=afterok:"$prepare" --kill-on-invalid-dep=yes 2_train.sh)
train=${train%%;*}
echo "2_train $train 0-9" | tee -a jobs.txt

select=$(sbatch --parsable --dependency=afterok:"$train" --kill-on-invalid-dep=yes 3_select.sh)
select=${select%%;*}
echo "3_select $select -" | tee -a jobs.txt

predict=$(sbatch --parsable --dependency=afterok:"$select" --kill-on-invalid-dep=yes 4_predict.sh)
predict=${predict%%;*}
echo "4_predict $predict 0-1" | tee -a jobs.txt

evaluate=$(sbatch --parsable --dependency=afterok:"$predict" --kill-on-invalid-dep=yes 5_evaluate.sh)
evaluate=${evaluate%%;*}
echo "5_evaluate $evaluate -" | tee -a jobs.txt

report=$(sbatch --parsable --dependency=afterok:"$evaluate" --kill-on-invalid-dep=yes 6_report.sh)
report=${report%%;*}
echo "6_report $report -" | tee -a jobs.txt
