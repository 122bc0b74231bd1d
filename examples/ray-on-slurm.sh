#!/bin/bash
# Starts Ray on every node of a SLURM job and runs studies on it. Submit it with: sbatch examples/ray-on-slurm.sh
#
# Before the time is up the run is told to stop, and the job puts itself into the queue again: it goes on where it was
# until every trial has its row. Only the first node writes to OUTPUT; DATA must be there on every node, and neurograft
# installed (pip install 'neurograft[cluster]'). Change the lines below to what your cluster has.
#SBATCH --job-name=neurograft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120

STUDIES=${STUDIES:-comparison}
PRESET=${PRESET:-paper}
DATA=${DATA:-$HOME/data}
OUTPUT=${OUTPUT:-$HOME/neurograft-experiments}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node do not meet
each=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --block)

srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    ray start --head --node-ip-address="$ip" --port="$port" --include-dashboard=false "${each[@]}" &
for _ in {1..60}; do
    ray status --address="$ip:$port" > /dev/null 2>&1 && break
    sleep 2
done
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --nodelist="$node" ray start --address="$ip:$port" "${each[@]}" &
done

# shellcheck disable=SC2086 - several studies are several words
neurograft experiment run $STUDIES --preset "$PRESET" --engine ray --address "$ip:$port" \
    --cpus-per-trial 8 --gpus-per-trial 1 --data-folder "$DATA" --output "$OUTPUT" &
run=$!
trap 'kill -TERM "$run"' TERM
wait "$run"
code=$?
if [ "$code" -gt 128 ] && kill -0 "$run" 2> /dev/null; then # the signal ended the waiting, not the run
    wait "$run"
    code=$?
fi
if [ "$code" -eq 130 ]; then # stopped before it was done
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
