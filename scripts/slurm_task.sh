# One task of a sweep's job array: the part of runs/slurm.py's batch scripts that is the same in all.
# Above it are sbatch's options, `logs` (a folder) and `attempts` (how often a task may start); below
# it the tasks, as lines `#NUMBER COMMAND  # FOLDER`, which sbatch keeps with the script.
# What begins with == in a task's log is for `scripts/sweep.sh … --status`, and counts the attempts.
set -u
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # $SLURM_JOB_ID may stand for the whole array
command=$(sed -n "s/^#$SLURM_ARRAY_TASK_ID //p" "$0")
attempt=$(($(grep -c '^== attempt' "$logs/$task.log") + 1))
if [ "$attempt" -gt "$attempts" ]; then
  echo "== given up after $attempts attempts"
  exit 1
fi
echo "== attempt $attempt of $attempts on $(uname -n), $(date '+%F %T'): $command"

# Before the time limit the batch script alone is sent SIGTERM, by --signal=B:TERM@60.
setsid bash -c "$command" & # in a process group of its own
runner=$!
trap 'kill -TERM "$runner"' TERM
while
  wait "$runner"
  code=$?
  kill -0 "$runner" 2>/dev/null
do :; done
kill -KILL -- "-$runner" 2>/dev/null # what is left of it, if it was killed itself
if [ "$code" -le 128 ]; then # done, or failed by itself
  echo "== exit code $code"
  exit "$code"
fi

trap '' TERM
echo "== stopped (exit code $code)"
for pause in 0 5 10 20; do # the controller may be away for a moment
  sleep "$pause"
  state=$(squeue --noheader --jobs="$task" --format=%T) || continue
  [ "$state" = RUNNING ] || break # cancelled, or requeued by Slurm itself
  scontrol requeue "$task" && break
done
exit "$code"
