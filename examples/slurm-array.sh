#!/bin/sh
# One shard of a run in each task of a SLURM job array:  sbatch --array=1-16 slurm-array.sh
# When all have ended:  ddsmoothing merge runs/shard-* --out runs/whole
#
#SBATCH --job-name=certify
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=runs/shard-%a.log
#SBATCH --signal=B:TERM@120
# For a GPU add:  #SBATCH --gres=gpu:1

# The same options and the same seed in every task; SIGMA, N, .. are yours to change.
OUT=runs/shard-$SLURM_ARRAY_TASK_ID
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

ddsmoothing certify \
    --model "${MODEL:-fashion-mnist-cnn}" --data "${DATA:-fashion-mnist-sample}" \
    --sigma "${SIGMA:-0.5}" --n "${N:-10000}" --seed 1 \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --out "$OUT" &
CERTIFY=$!
trap 'kill -TERM $CERTIFY' TERM # SLURM tells this script that time is nearly over; certify ends in order
wait $CERTIFY
CODE=$?
if [ "$CODE" -gt 128 ]; then # the signal ended the waiting, not the work
    wait $CERTIFY
    CODE=$?
fi
if [ "$CODE" -eq 75 ]; then # interrupted, resumable: back into the queue
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    exit 0
fi
exit "$CODE"
