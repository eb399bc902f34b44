#!/usr/bin/env bash
#SBATCH --job-name=ddsmoothing
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# One run on all machines of a SLURM job. Each machine starts Ray by `ray symmetric-run` (Ray 2.49 or newer); the first
# one also runs the command, and is the only one that writes. Submit it again to continue: sbatch ray-symmetric-run.sh
# Without SLURM, set NODES and HEAD and start the script on every machine; NODES=1 uses this machine alone.
set -euo pipefail

NODES=${NODES:-${SLURM_JOB_NUM_NODES:-1}}
if [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
    HEAD=${HEAD:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
    START=(srun --ntasks-per-node=1)
fi
HEAD=${HEAD:-127.0.0.1}

# The command of the run: --address auto finds the Ray that was started here.
RUN=${RUN:-runs/whole}
COMMAND=(ddsmoothing certify --model "${MODEL:-fashion-mnist-cnn}" --data "${DATA:-fashion-mnist-sample}"
    --sigma 0.5 --n 10000 --seed 0 --out "$RUN" --executor ray --address auto "$@")

export RAY_USAGE_STATS_ENABLED=0
exec ${START[@]+"${START[@]}"} ray symmetric-run --address "$HEAD:${PORT:-6379}" --min-nodes "$NODES" -- "${COMMAND[@]}"
