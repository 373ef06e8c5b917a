#!/usr/bin/env bash
# SLURM for real, on one machine, by hand: bash tests/cluster/slurm.sh (as root; Debian: apt install slurm-wlm munge).
#
# Two nodes on this machine. A run of two processes is submitted with launch/cluster/slurm.py, preempted by a more
# important job, goes on by itself and ends with the losses of a run that nothing has stopped. Another comes to the limit
# of its time and goes on in its next turn, until it is cancelled and stays so. Takes about ten minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ -z "${SLURM_TEST:-}" ]; then # in a mount namespace of its own: /etc/hosts outside stays what it is
  SLURM_TEST="$(mktemp -d)" exec unshare --mount --pid --fork --kill-child --mount-proc bash "${BASH_SOURCE[0]}"
fi
work="$SLURM_TEST"
trap 'rm -rf "$work"' EXIT # the daemons end with the namespace
python="${PYTHON:-$PWD/.venv/bin/python}"
hosts="$(cat /etc/hosts)"
printf '%s\n127.0.0.1 node1 node2 %s\n' "$hosts" "$(hostname)" >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts

say() { printf '\n== %s\n' "$*"; }
free_port() { "$python" -c 'from lm.cluster.local import free_port; print(free_port())'; }
trained() { [ -e "$run/metrics.jsonl" ] && [ "$(wc -l <"$run/metrics.jsonl")" -ge "$1" ]; }
is_in() { [[ "$(state "$1")" = "$2"* ]]; }
state() { scontrol show job --oneliner "$1" | sed 's/.*JobState=\([A-Z_]*\).*Restarts=\([0-9]*\).*/\1 after \2 restarts/'; }
# until SECONDS WHAT COMMAND...: waits until the command succeeds.
until_true() {
  local end=$((SECONDS + $1)) what="$2"
  shift 2
  until "$@"; do
    if [ "$SECONDS" -gt "$end" ]; then
      echo "FAILED: waited too long until $what" >&2
      squeue -o '%i %P %j %T %r' >&2
      tail -n 20 "$work"/slurm*.log "$run"/launch/*/*.log >&2
      exit 1
    fi
    sleep 0.2
  done
  echo "$what: yes"
}

say "The cluster: a controller, two nodes"
chmod 755 "$work"
mkdir "$work"/{state,node1,node2,munge}
dd if=/dev/urandom of="$work/munge/key" bs=1024 count=1 status=none
chmod 400 "$work/munge/key"
munged --force --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
  --log-file="$work/munge/log" --seed-file="$work/munge/seed"
cat >"$work/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/%n/pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/linear
SchedulerParameters=bf_interval=2,sched_min_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
NodeName=node1 NodeAddr=127.0.0.1 NodeHostname=$(hostname) Port=$(free_port) CPUs=1 RealMemory=1000
NodeName=node2 NodeAddr=127.0.0.1 NodeHostname=$(hostname) Port=$(free_port) CPUs=1 RealMemory=1000
PartitionName=research Nodes=node1,node2 Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node1,node2 PriorityTier=10 PreemptMode=OFF
CONF
export SLURM_CONF="$work/slurm.conf"
slurmctld
for node in node1 node2; do slurmd -N "$node"; done
idle() { [ "$(sinfo --noheader --partition=research --format=%D%t)" = 2idle ]; }
run="$work/run"
until_true 60 "both nodes are idle" idle
sinfo

say "A corpus of a few thousand sentences and a small model"
"$python" - "$work/corpus.txt" <<'PYTHON'
import random, sys
rng = random.Random(0)
words = [a + b for a in ("ka", "lo", "mi", "su", "te", "ro") for b in ("n", "ra", "st", "l", "mo", "ki", "pe")]
text = ("\n".join(" ".join(rng.choices(words, k=rng.randint(4, 12))) + "." for _ in range(8)) for _ in range(400))
open(sys.argv[1], "w").write("\n\n".join(text))
PYTHON
export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 XDG_CACHE_HOME="$work/cache"
steps=200
flags=(
  --config=configs/quickstart.py --config.data.source=text --config.data.path="$work/corpus.txt"
  --config.data.vocab_size=448 --config.data.seq_length=32 --config.data.batch_size=8
  --config.model.vocab_size=448 --config.model.d_model=48 --config.model.d_ff=96 --config.model.num_layers=2
  --config.mesh.fsdp=4 --config.train.steps="$steps" --config.train.eval_every=0 --config.train.log_every=1
  --config.checkpoint.every=100
)

say "Submit"
submit() { "$python" launch/cluster/slurm.py --nodes=2 --partition=research "${flags[@]}" "$@" | sed 's/.* //'; }
job="$(submit --name=small --workdir="$run")"
until_true 600 "20 steps are done" trained 20

say "Preempt: a more important job takes both nodes"
urgent="$(sbatch --parsable --partition=urgent --nodes=2 --job-name=urgent --output=/dev/null --wrap='sleep 3')"
until_true 90 "the urgent job runs" is_in "$urgent" RUNNING
echo "the run: $(state "$job"); the urgent job: $(state "$urgent")"

say "Resume: the run goes on by itself"
until_true 1200 "the run is done" is_in "$job" COMPLETED
echo "the run: $(state "$job")"
grep -hoE '(resuming from|stopped at) step.*' "$run"/launch/*/small-"$job".log

say "Compare with a run of the same processes that nothing stops"
"$python" launch/cluster/local.py --processes=2 --devices=2 -- \
  "$python" launch/train.py "${flags[@]}" --workdir="$work/unbroken" >"$work/unbroken.log" 2>&1
"$python" - "$work/run" "$work/unbroken" <<'PYTHON'
import json, sys
curves = [[json.loads(line) for line in open(f"{folder}/metrics.jsonl")] for folder in sys.argv[1:]]
broken, unbroken = ([(line["step"], line["loss"], line["gradient_norm"]) for line in curve] for curve in curves)
print(f"{len(broken)} and {len(unbroken)} lines; the last: {broken[-1]} and {unbroken[-1]}")
sys.exit(broken != unbroken and "FAILED: the curves differ")
PYTHON
echo "both curves are bitwise equal"

say "The limit of time: a run that takes longer has another turn"
run="$work/long"
job="$(submit --name=long --workdir="$run" --time=4 --notice=60 --config.train.steps=1000000)"
again() { [[ "$(state "$job")" = "RUNNING after 1 restarts" ]]; }
until_true 600 "the run has its second turn" again
resumed() { grep -q 'resuming from step' "$run"/launch/*/long-"$job".log; }
until_true 300 "it has resumed" resumed
grep -hoE '(resuming from|stopped at) step.*' "$run"/launch/*/long-"$job".log

say "Cancel: a cancelled run does not come back"
scancel "$job"
until_true 90 "it is cancelled" is_in "$job" CANCELLED
sleep 10
echo "ten seconds later: $(state "$job")"
is_in "$job" CANCELLED
echo "PASSED"
