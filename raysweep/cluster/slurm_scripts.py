"""The text of the batch scripts that `raysweep.cluster.slurm` fills in, which a person can read and edit."""

from __future__ import annotations

SCRIPT = """\
#!/bin/bash
{options}
#
# Written by `raysweep slurm`; yours to edit, and to submit with sbatch.

# USR1: the time limit is {notice} s away. TERM: it is to end (`raysweep stop`, scancel --batch, preemption).
again=
trap 'again=1' USR1
trap 'exit 143' TERM
{requeue}
export PATH={programs}:$PATH
space={space}
store={store}

# Of this job alone: other jobs, and other people's Ray, may share these nodes.
port=$((20000 + SLURM_JOB_ID % 4000 * 10))
# On each node's own disk; short, since names of sockets may have 107 bytes.
export RAY_TMPDIR=/tmp/rs$SLURM_JOB_ID TMPDIR=/tmp/rs$SLURM_JOB_ID
{settings}
export RAYSWEEP_STOP_WAIT={patience}   # seconds that cells have to write checkpoints before the sweep stops
export RAY_AUTH_MODE=token
{token}
export RAY_ADDRESS
RAY_ADDRESS=$(python -c 'import ray.util; print(ray.util.get_node_ip_address())'):$port

# Ray on every node, each in a step of its own until the job ends: one that is lost takes no other with it.
export EVERY HEAD FIRST=$SLURMD_NODENAME DRIVER='{{"{driver}": 1}}'
EVERY="ray start --block --disable-usage-stats --min-worker-port=0 --max-worker-port=0 --temp-dir=$RAY_TMPDIR/ray"
EVERY="$EVERY --dashboard-agent-listen-port=$((port + 3))"
HEAD="--head --node-ip-address=${{RAY_ADDRESS%:*}} --port=$port --ray-client-server-port=$((port + 1))"
HEAD="$HEAD --dashboard-port=$((port + 2))"
steps=()
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
cores=()   # of each node, from what Slurm writes as 32(x2),64
for part in ${{SLURM_JOB_CPUS_PER_NODE//,/ }}; do
  times=1
  if [[ $part == *x* ]]; then times=${{part#*x}}; times=${{times%)}}; fi
  for ((i = 0; i < times; i++)); do cores+=("${{part%%(*}}"); done
done
for node in $nodes; do
  srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="${{cores[${{#steps[@]}}]}}" --overlap bash -c '
    EVERY="$EVERY --num-cpus={cores} --num-gpus=${{SLURM_GPUS_ON_NODE:-0}}"
    rm -rf "$RAY_TMPDIR"; mkdir -m 700 "$RAY_TMPDIR" || exit 1
    if [ "$SLURMD_NODENAME" = "$FIRST" ]; then $EVERY $HEAD --resources="$DRIVER"; exit; fi
    until $EVERY --address="$RAY_ADDRESS"; do sleep 5; done   # until the head is there
  ' >> "raysweep-ray-$SLURM_JOB_ID.log" 2>&1 &
  steps+=($!)
done
until ray status > /dev/null 2>&1; do
  kill -0 "${{steps[0]}}" 2> /dev/null || {{ echo "Ray did not start: see raysweep-ray-$SLURM_JOB_ID.log"; exit 1; }}
  sleep 1
done
{address}
raysweep run "$space" --store "$store" &
sweep=$!
# One that only begins holds no store yet: `raysweep stop` does not find it, and it is told itself.
stop() {{ raysweep stop "$space" --store "$store"; kill -TERM $sweep 2> /dev/null; }}
trap 'again=1; stop' USR1
trap 'stop' TERM
if [ -n "$again" ]; then stop; fi
while kill -0 $sweep 2> /dev/null; do wait $sweep; done   # which a signal interrupts
wait $sweep
status=$?
# 130: stopped before it was done; 143: before it began. The job waits in the queue again, and goes on from the store.
if [ "$status" != 130 ] && [ "$status" != 143 ]; then again=; fi
{end}kill "${{steps[@]}}" 2> /dev/null
wait
for node in $nodes; do srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap rm -rf "$RAY_TMPDIR" 2> /dev/null & done
wait

if [ -n "$again" ]; then requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""

REQUEUE = """\
requeue() {   # Slurm may be too busy to answer, most of all when many jobs end.
  for _ in {1..20}; do
    if scontrol requeue "$1"; then return; fi
    sleep 5
  done
  echo "job $1 was not queued again: submit it anew, and the sweep resumes"
}
"""

KEY_MADE_HERE = """\
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_TOKEN"""

KEY_OF_SUBMISSION = """\
: "${RAY_AUTH_TOKEN:?is what raysweep slurm --elastic gives to this job and to its workers: submit both by it}\""""

ADDRESS_FOR_WORKERS = """
# Where the workers' jobs find it.
echo "$RAY_ADDRESS" > "raysweep-$SLURM_JOB_ID.address"
"""

END_OF_WORKERS = """\
if [ -z "$again" ]; then
  rm -f "raysweep-$SLURM_JOB_ID.address"
  # The workers that wait, by both numbers: the first alone may be the whole array. Then those that run: they end in order
  # only while this job's Ray is there.
  workers="raysweep-workers-$SLURM_JOB_ID"
  squeue --noheader --me --states=PENDING --name="$workers" --array --format=%F_%K | xargs --no-run-if-empty scancel
  scancel --batch --signal=TERM --jobname="$workers"
  for _ in {1..60}; do squeue --noheader --me --name="$workers" | grep -q . || break; sleep 1; done
fi
"""

WORKER = """\
#!/bin/bash
{options}
#
# Written by `raysweep slurm --elastic`: a node for the sweep of job {head}, for as long as Slurm lends it.

{requeue}
export PATH={programs}:$PATH
export RAY_TMPDIR=/tmp/rs$SLURM_JOB_ID TMPDIR=/tmp/rs$SLURM_JOB_ID
export RAY_AUTH_MODE=token
: "${{RAY_AUTH_TOKEN:?is what the job of the sweep has: submit both by raysweep slurm --elastic}}"
port=$((20000 + SLURM_JOB_ID % 4000 * 10))
rm -rf "$RAY_TMPDIR"; mkdir -m 700 "$RAY_TMPDIR" || exit 1

# USR1: the time limit is {notice} s away. Cells resume elsewhere from their last checkpoint; the job is queued again.
again=
ray=
trap 'again=1; [ -z "$ray" ] || kill "$ray" 2> /dev/null' USR1
trap 'trap "" TERM; [ -z "$ray" ] || kill "$ray" 2> /dev/null; wait; rm -rf "$RAY_TMPDIR"; exit' TERM
over() {{ said=$(squeue --noheader --jobs={head} 2>&1) && [ -z "$said" ] || [[ $said == *"Invalid job id"* ]]; }}
while [ -z "$again" ] && ! over; do
  address=$(cat raysweep-{head}.address 2> /dev/null)
  if [ -n "$address" ] && ray health-check --address "$address" > /dev/null 2>&1; then
    ray start --block --disable-usage-stats --address="$address" --num-cpus="$SLURM_CPUS_ON_NODE" \\
      --num-gpus="${{SLURM_GPUS_ON_NODE:-0}}" --min-worker-port=0 --max-worker-port=0 --temp-dir="$RAY_TMPDIR/ray" \\
      --dashboard-agent-listen-port=$((port + 3)) &
    ray=$!
    while kill -0 $ray 2> /dev/null; do   # as long as the sweep's Ray is there, or until a signal comes
      if [ -n "$again" ]; then kill $ray 2> /dev/null; fi
      wait $ray
    done
    ray=
  fi
  if [ -z "$again" ]; then sleep 10 & wait $!; fi
done
rm -rf "$RAY_TMPDIR"
# By both numbers: the first alone would be the whole array.
if [ -n "$again" ]; then requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"; fi
"""
