#!/usr/bin/env bash
# Trains on Cloud TPU VMs without Kubernetes: requests them, installs and starts on all of them.
#
#   launch/queued_resource.sh ACTION --name=NAME --zone=ZONE [OPTIONS] [-- train ...]
#
#   create   requests the slice: --topology=v5p:2x2x4 [--slices=N] [--spot] [--reserved]
#   wait     waits until the slice is there
#   install  installs this checkout's commit into ~/imagewam of every worker, with Python and JAX for TPUs;
#            mounts [--bucket=NAME] at /bucket and [--nfs=ADDRESS:/SHARE] at /data
#   start    starts [--env=NAME=VALUE]... -- train --config=configs/libero.py:4b --workdir=/data/runs/libero
#            on all workers; --distributed, --resume and the number of slices are added
#   log      follows what the first worker writes
#   stop     tells all to save a checkpoint and end, and waits for them; `start` goes on from there
#   delete   gives the slice back
#
# Every action takes --project=PROJECT, --slices=N as at creation, and --dry-run, which prints the
# commands instead of running them. A slice that was preempted is gone: delete, create, wait,
# install and start again. Nothing here does so by itself; a JobSet on GKE does.

set -euo pipefail

fail() {
  echo "${0##*/}: $1" >&2
  exit 2
}

# Prints a command as a shell would read it, with the scripts in it line by line.
show() {
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[-A-Za-z0-9_./:=,@+]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  echo "${line# }"
}

run() {
  if [[ -n $dry_run ]]; then
    show "$@"
  else
    "$@"
  fi
}

# Runs a script on all nodes at once, since the processes of a run wait for each other.
on_all() {
  local node pids=() pid code=0
  for node in "${nodes[@]}"; do
    if [[ -n $dry_run ]]; then
      show "${vm[@]}" ssh "$node" "${where[@]}" --worker=all "--command=$1"
    else
      "${vm[@]}" ssh "$node" "${where[@]}" --worker=all "--command=$1" &
      pids+=($!)
    fi
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
  done
  return "$code"
}

create() {
  local type runtime wanted=()
  case $topology in
    v4:*) type=v4 runtime=tpu-ubuntu2204-base ;;
    v5e:*) type=v5litepod runtime=v2-alpha-tpuv5-lite ;;
    v5p:*) type=v5p runtime=v2-alpha-tpuv5 ;;
    v6e:*) type=v6e runtime=v2-alpha-tpuv6e ;;
    *) fail "--topology is that of a slice, such as v5p:2x2x4 or v6e:4x4" ;;
  esac
  if [[ $slices -gt 1 ]]; then
    wanted+=("--node-count=$slices" "--node-prefix=$name")
  else
    wanted+=("--node-id=$name")
  fi
  run "${queued[@]}" create "$name" "${where[@]}" "--type=$type" "--topology=${topology#*:}" \
    "--runtime-version=$runtime" "${wanted[@]}" "${kind[@]}"
}

wait_for_slice() {
  local describe=("${queued[@]}" describe "$name" "${where[@]}" "--format=value(state.state)")
  local state
  if [[ -n $dry_run ]]; then
    run "${describe[@]}"
    return
  fi
  while state=$("${describe[@]}") && [[ $state != ACTIVE ]]; do
    case $state in
      FAILED | SUSPENDED | SUSPENDING) fail "$name is $state" ;;
    esac
    echo "$name is $state"
    sleep 30
  done
  [[ $state == ACTIVE ]]
}

install() {
  local archive node script
  archive=$(mktemp --suffix=.tar.gz)
  # shellcheck disable=SC2064  # expanded now, on purpose
  trap "rm -f '$archive'" EXIT
  run git archive --format=tar.gz "--output=$archive" HEAD
  for node in "${nodes[@]}"; do
    run "${vm[@]}" scp "$archive" "$node:imagewam.tar.gz" "${where[@]}" --worker=all
  done
  # uv brings the Python that constraints.txt is for; that of the system is older.
  script='set -e
rm -rf imagewam && mkdir imagewam && tar -xzf imagewam.tar.gz -C imagewam
python3 -m pip install --quiet --user uv
cd imagewam
~/.local/bin/uv venv --quiet --python 3.11 .venv
~/.local/bin/uv pip install --quiet --constraint constraints.txt --editable ".[text,gcs]" "jax[tpu]"'
  if [[ -n $bucket ]]; then
    # Hosts see at once what another has written, since they write a checkpoint together.
    script+="
if ! command -v gcsfuse >/dev/null; then
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg \\
    | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  keys='[signed-by=/usr/share/keyrings/cloud.google.asc]'
  echo \"deb \$keys https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" \\
    | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install -y gcsfuse
fi
if ! mountpoint -q /bucket; then
  sudo mkdir -p /bucket && sudo chown \"\$USER\" /bucket
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \\
    $(printf %q "$bucket") /bucket
fi"
  fi
  if [[ -n $nfs ]]; then
    script+="
sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common
sudo mkdir -p /data
mountpoint -q /data || sudo mount -t nfs $(printf %q "$nfs") /data"
  fi
  on_all "$script"
}

start() {
  local arguments=("$@" --distributed --resume) quoted
  [[ $# -gt 0 ]] || fail "what to run goes behind --, such as: -- train --config=... --workdir=..."
  if [[ $slices -gt 1 ]]; then
    arguments+=("--config.mesh.slices=$slices")
  fi
  quoted=$(printf ' %q' "${arguments[@]}")
  # The run goes on when the connection is closed. `stop` signals its process, not that of a shell.
  on_all "if { kill -0 \"\$(cat imagewam.pid)\"; } 2>/dev/null; then
  echo 'it runs already' >&2
  exit 1
fi
cat >imagewam.sh <<'END'
cd ~/imagewam
export$(printf ' %q' "${env[@]}")
.venv/bin/imagewam$quoted &
echo \$! >~/imagewam.pid
wait \$!
echo \"exit code \$?\"
END
setsid nohup bash imagewam.sh >>imagewam.log 2>&1 </dev/null &"
}

stop() {
  # Tells all processes to stop, then waits for them. Where none runs, there is nothing to do.
  # shellcheck disable=SC2016  # expanded on the workers
  on_all 'pid=$(cat imagewam.pid) && kill -TERM "$pid" || exit 0
while kill -0 "$pid"; do sleep 0.5; done 2>/dev/null
sleep 0.5 && tail -n 1 imagewam.log'
}

[[ $# -gt 0 ]] || fail "which action? --help lists them"
action=$1
shift
name="" zone="" project="" topology="" slices=1 bucket="" nfs="" dry_run="" kind=()
# JAX then fails without a TPU instead of training on the CPU.
env=("JAX_PLATFORMS=tpu,cpu")
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --nfs=*) nfs=${1#*=} ;;
    --env=*=*) env+=("${1#*=}") ;;
    --spot | --reserved) kind+=("$1") ;;
    --dry-run) dry_run=yes ;;
    *) fail "no such option: $1" ;;
  esac
  shift
done
if [[ $action == --help ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit
fi
[[ $# -eq 0 ]] || shift
[[ -n $name ]] || fail "--name is needed"
[[ -n $zone ]] || fail "--zone is needed"

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
vm=(gcloud compute tpus tpu-vm)
queued=(gcloud compute tpus queued-resources)
nodes=("$name")
if [[ $slices -gt 1 ]]; then
  nodes=()
  for ((number = 0; number < slices; number++)); do
    nodes+=("$name-$number")
  done
fi

case $action in
  create) create ;;
  wait) wait_for_slice ;;
  install) install ;;
  start) start "$@" ;;
  log) run "${vm[@]}" ssh "${nodes[0]}" "${where[@]}" --worker=0 "--command=tail -n 20 -F imagewam.log" ;;
  stop) stop ;;
  delete) run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet ;;
  *) fail "no such action: $action" ;;
esac
