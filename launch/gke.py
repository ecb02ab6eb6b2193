"""Prints a JobSet that trains on one or more TPU slices of a GKE cluster.

    python -m launch.gke --name=libero --topology=v5p:2x2x4 --image=IMAGE \\
      -- train --config=configs/libero.py:4b --workdir=gs://BUCKET/runs/libero | kubectl apply -f -

The cluster needs JobSet 0.6 or newer and a node pool of the slice. Write the command behind --,
without --distributed, --resume and the number of slices, which are added.

All pods restart together, since no process of a run can go on without the others. They restart any
number of times after exit code 75 (told to stop, a checkpoint was saved) and after the eviction or
preemption of a pod, and --max-restarts times after any other failure. A node that vanishes is such
a failure: the other processes notice it, and fail, before Kubernetes does.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from launch.local import PREEMPTED
from launch.slices import Slice, SliceError, parse_slice

BUCKET_PATH, CLAIM_PATH = "/bucket", "/data"
# Hosts see at once what another has written, since they write a checkpoint together.
MOUNT_OPTIONS = "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"
JOB = "slice"  # the name of the replicated job
CONTAINER = "imagewam"  # the name of the one container in its pods


def jobset(
    arguments: Sequence[str],
    *,
    name: str,
    topology: Slice,
    image: str,
    slices: int = 1,
    bucket: str = "",
    bucket_cache: str = "",
    claim: str = "",
    namespace: str = "",
    service_account: str = "",
    queue: str = "",
    spot: bool = False,
    env: Sequence[str] = (),
    max_restarts: int = 50,
    grace_seconds: int = 600,
) -> dict[str, Any]:
    """The manifest; `--help` explains the parameters."""
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    # Each slice is a node pool, and each pool runs the pods of one slice.
    metadata["annotations"] = {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    pod = _pod(
        [*arguments, *_added(arguments, slices)],
        topology=topology,
        image=image,
        spot=spot,
        service_account=service_account,
        # JAX then fails without a TPU instead of training on the CPU.
        env=["JAX_PLATFORMS=tpu,cpu", *env],
        grace_seconds=grace_seconds,
        host_network=slices > 1,
    )
    annotations = _mount(pod, bucket=bucket, bucket_cache=bucket_cache, claim=claim)
    template = {"metadata": {"annotations": annotations}} if annotations else {}
    job = {
        "parallelism": topology.hosts,
        "completions": topology.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # the failure of one pod fails all
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": [PREEMPTED],
                    },
                },
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {**template, "spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": max_restarts,
                # A job that failed by its podFailurePolicy has this reason; other failures count.
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": JOB, "replicas": slices, "template": {"spec": job}}],
        },
    }


def _added(arguments: Sequence[str], slices: int) -> list[str]:
    """Options to add. --resume begins afresh where there is no checkpoint, so it always fits."""
    wanted = ["--distributed", "--resume"]
    if slices > 1:
        wanted.append(f"--config.mesh.slices={slices}")
    return [one for one in wanted if one not in arguments]


def _pod(
    arguments: list[str],
    *,
    topology: Slice,
    image: str,
    spot: bool,
    service_account: str,
    env: Sequence[str],
    grace_seconds: int,
    host_network: bool,
) -> dict[str, Any]:
    chips = {"google.com/tpu": topology.chips_per_host}
    pod: dict[str, Any] = {"restartPolicy": "Never"}
    if service_account:
        pod["serviceAccountName"] = service_account
    if host_network:
        # Traffic between slices goes over the hosts' own network cards.
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    pod["nodeSelector"] = {
        "cloud.google.com/gke-tpu-accelerator": topology.accelerator,
        "cloud.google.com/gke-tpu-topology": topology.topology,
    }
    if spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    pod["tolerations"] = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    # The time from SIGTERM to SIGKILL, in which a checkpoint is saved.
    pod["terminationGracePeriodSeconds"] = grace_seconds
    pod["containers"] = [
        {
            "name": CONTAINER,
            "image": image,
            "command": ["imagewam", *arguments],
            "env": [dict(zip(("name", "value"), one.split("=", 1), strict=True)) for one in env],
            "resources": {"requests": chips, "limits": dict(chips)},
        }
    ]
    return pod


def _mount(pod: dict[str, Any], *, bucket: str, bucket_cache: str, claim: str) -> dict[str, str]:
    """Adds volumes to a pod; returns the annotations that the pod then needs."""
    volumes, mounts, annotations = [], [], {}
    if bucket:
        attributes = {"bucketName": bucket, "mountOptions": MOUNT_OPTIONS}
        if bucket_cache:
            # Frames are read as ranges of files, which would not fill the cache by default.
            attributes |= {"fileCacheCapacity": bucket_cache, "fileCacheForRangeRead": "true"}
        if pod.get("hostNetwork"):
            attributes["hostNetworkPodKSA"] = "true"
        source = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": "bucket", "csi": source})
        mounts.append({"name": "bucket", "mountPath": BUCKET_PATH})
        annotations = {"gke-gcsfuse/volumes": "true"}
        # The defaults of the sidecar container are for small files; 0 means no limit.
        for resource in ("cpu", "memory", "ephemeral-storage"):
            annotations[f"gke-gcsfuse/{resource}-limit"] = "0"
    if claim:
        volumes.append({"name": "claim", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "claim", "mountPath": CLAIM_PATH})
    if volumes:
        pod["containers"][0]["volumeMounts"] = mounts
        pod["volumes"] = volumes
    return annotations


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.gke",
        usage="%(prog)s --name=... --topology=... --image=... [options] -- train ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--name", required=True, help="name of the JobSet; its pods are called NAME-slice-0-0")
    add("--topology", required=True, help="the slice, such as v5p:2x2x4 or v6e:4x4")
    add("--chips-per-host", type=int, help="8 for a 2x4 of one machine; default: as documented")
    add("--slices", type=int, default=1, help="how many; divides mesh.data; default: 1")
    add("--image", required=True, help="an image made with launch/Dockerfile")
    add("--bucket", default="", help=f"a bucket to mount at {BUCKET_PATH} through GCS FUSE")
    add("--bucket-cache", default="", help="each host's cache of the bucket's files, such as 200Gi")
    add("--claim", default="", help=f"a PersistentVolumeClaim to mount at {CLAIM_PATH}")
    add("--namespace", default="")
    add("--service-account", default="", help="of Kubernetes, with access to the bucket")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="can be repeated")
    add("--queue", default="", help="of Kueue")
    add("--spot", action="store_true", help="on Spot nodes")
    add("--max-restarts", type=int, default=50, help="after failures; default: 50")
    add("--grace-seconds", type=int, default=600, help="time to save a checkpoint; default: 600")
    argv = list(sys.argv[1:] if argv is None else argv)
    own, arguments = argv, []
    if "--" in argv:
        own, arguments = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    given = vars(parser.parse_args(own))
    if not arguments:
        parser.error("what to run goes behind --, such as: -- train --config=... --workdir=...")
    # A pod's host name has at most 63 characters, with the job's name and two numbers in them.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,43}[a-z0-9])?", given["name"]):
        parser.error(f"--name={given['name']}: lower-case letters, digits and -, at most 45")
    if given["slices"] < 1:
        parser.error("--slices is at least 1")
    if bad := [one for one in given["env"] if "=" not in one]:
        parser.error(f"--env={bad[0]}: expected NAME=VALUE")
    if given["bucket_cache"] and not given["bucket"]:
        parser.error("--bucket-cache is of a --bucket")
    try:
        given["topology"] = parse_slice(given["topology"], given.pop("chips_per_host"))
    except SliceError as error:
        parser.error(str(error))
    if given["topology"].hosts == 1 and given["slices"] > 1:
        parser.error("several slices are of several hosts each")
    print(yaml.safe_dump(jobset(arguments, **given), sort_keys=False, width=100), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
