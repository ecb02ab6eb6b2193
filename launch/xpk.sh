#!/usr/bin/env bash
# Trains on one or more TPU slices of a cluster that XPK made.
#
#   launch/xpk.sh --cluster=NAME --workload=NAME --topology=v5p:2x2x4 --image=IMAGE \
#     [--slices=N] [--max-restarts=N] [--grace-seconds=S] [--dry-run] [XPK OPTIONS] \
#     -- train --config=configs/libero.py:4b --workdir=gs://BUCKET/runs/libero
#
# XPK options are --option=value, such as --project, --zone, --priority and --storage, which mounts
# a storage of `xpk storage attach`. Write the command behind --, without --distributed, --resume and
# the number of slices, which are added. --dry-run prints the command instead of running it.
#
# All pods restart together after exit code 75 (told to stop, a checkpoint was saved) and after a pod
# was killed. Any other exit code, such as 1 for a mistake in the config, ends the run. XPK counts
# both kinds of restart, so many are allowed.

set -euo pipefail

fail() {
  echo "${0##*/}: $1" >&2
  exit 2
}

topology="" image="" slices=1 max_restarts=50 grace_seconds=600 dry_run="" given=()
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --topology=*) topology=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --max-restarts=*) max_restarts=${1#*=} ;;
    --grace-seconds=*) grace_seconds=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit
      ;;
    --*) given+=("$1") ;;
    *) fail "options are --option=value, not $1" ;;
  esac
  shift
done
[[ $# -gt 1 ]] || fail "what to run goes behind --, such as: -- train --config=... --workdir=..."
shift
[[ -n $image ]] || fail "--image is needed"
[[ " ${given[*]-} " == *" --cluster="* ]] || fail "--cluster is needed"
[[ " ${given[*]-} " == *" --workload="* ]] || fail "--workload is needed"
case $topology in
  v5e:*) tpu_type=v5litepod-${topology#*:} ;;
  v4:* | v5p:* | v6e:*) tpu_type=${topology/:/-} ;;
  *) fail "--topology is that of a slice, such as v5p:2x2x4 or v6e:4x4" ;;
esac

arguments=("$@" --distributed --resume)
if [[ $slices -gt 1 ]]; then
  arguments+=("--config.mesh.slices=$slices")
fi
command=(
  xpk workload create "${given[@]}"
  "--tpu-type=$tpu_type"
  "--num-slices=$slices"
  "--docker-image=$image"
  "--max-restarts=$max_restarts"
  --restart-on-exit-codes=75
  "--termination-grace-period-seconds=$grace_seconds"
  # JAX then fails without a TPU instead of training on the CPU.
  "--env=JAX_PLATFORMS=tpu,cpu"
  # XPK passes SIGTERM to the subshell that runs this; exec puts the process itself in its place.
  "--command=exec imagewam$(printf ' %q' "${arguments[@]}")"
)
if [[ -n $dry_run ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
