"""The JobSet: its structure, its demands on GKE, and when it restarts."""

import subprocess
import sys

import pytest
import yaml

from launch import gke
from tests.launch.scripts import ROOT

TRAIN = ["train", "--config=configs/libero.py:4b", "--workdir=/bucket/runs/libero"]
NEEDED = ["--name=libero", "--topology=v5p:2x2x4", "--image=registry/imagewam:1"]
ALL = [
    *NEEDED,
    "--slices=2",
    "--bucket=robots",
    "--bucket-cache=200Gi",
    "--claim=weights",
    "--namespace=robots",
    "--service-account=trainer",
    "--queue=research",
    "--env=A=b=c",
    "--spot",
]


def manifest(capsys, *options: str) -> dict:
    assert gke.main([*options, "--", *TRAIN]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def parts(found: dict) -> tuple[dict, dict, dict]:
    """The replicated job, the job's spec and the pod's."""
    (replicated,) = found["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return replicated, job, job["template"]["spec"]


@pytest.mark.parametrize("options", [NEEDED, ALL], ids=["needed", "all"])
def test_the_api_knows_every_field(options, capsys):
    """Against models that are generated from the schemas of JobSet and Kubernetes: a field that
    they do not know is lost on the way through them, one of another type is an error."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    found = manifest(capsys, *options)
    assert models.JobsetV1alpha2JobSet.from_dict(found).to_dict() == found
    broken = manifest(capsys, *options)
    broken["spec"]["replicatedJobs"][0]["template"]["spec"]["hosts"] = 4
    assert models.JobsetV1alpha2JobSet.from_dict(broken).to_dict() != broken


@pytest.mark.parametrize(
    ("topology", "hosts", "chips", "accelerator"),
    [
        ("v4:2x2x2", 2, 4, "tpu-v4-podslice"),
        ("v5e:4x8", 8, 4, "tpu-v5-lite-podslice"),
        ("v5p:4x4x4", 16, 4, "tpu-v5p-slice"),
        ("v6e:8x8", 16, 4, "tpu-v6e-slice"),
        ("v6e:1x1", 1, 1, "tpu-v6e-slice"),
    ],
)
def test_a_slice(topology, hosts, chips, accelerator, capsys):
    found = manifest(capsys, *NEEDED, f"--topology={topology}")
    replicated, job, pod = parts(found)
    assert replicated["replicas"] == 1
    assert job["parallelism"] == job["completions"] == hosts
    assert job["completionMode"] == "Indexed"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.split(":")[1],
    }
    (container,) = pod["containers"]
    tpu = {"google.com/tpu": chips}
    assert container["resources"] == {"requests": tpu, "limits": tpu}
    assert container["image"] == "registry/imagewam:1"
    assert {"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"} in pod[
        "tolerations"
    ]


def test_one_machine_of_eight_chips(capsys):
    found = manifest(capsys, *NEEDED, "--topology=v6e:2x4", "--chips-per-host=8")
    _, job, pod = parts(found)
    assert job["parallelism"] == 1
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}


def test_the_command(capsys):
    (container,) = parts(manifest(capsys, *NEEDED))[2]["containers"]
    assert container["command"] == ["imagewam", *TRAIN, "--distributed", "--resume"]
    assert {"name": "JAX_PLATFORMS", "value": "tpu,cpu"} in container["env"]


def test_what_was_given_is_not_added_again(capsys):
    assert gke.main([*NEEDED, "--", *TRAIN, "--resume"]) == 0
    (container,) = parts(yaml.safe_load(capsys.readouterr().out))[2]["containers"]
    assert container["command"].count("--resume") == 1


def test_when_it_starts_again(capsys):
    """A pod that fails is the failure of its job, and the job's that of all. That of a pod that
    was preempted is not counted: the policy of its job names it, and what that failed is restarted
    without end."""
    found = manifest(capsys, *NEEDED, "--max-restarts=3", "--grace-seconds=120")
    _, job, pod = parts(found)
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    exit_code, disruption = job["podFailurePolicy"]["rules"]
    assert exit_code["action"] == disruption["action"] == "FailJob"
    assert exit_code["onExitCodes"] == {
        "containerName": pod["containers"][0]["name"],
        "operator": "In",
        "values": [75],
    }
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert pod["terminationGracePeriodSeconds"] == 120


def test_several_slices(capsys):
    """GKE gives the pods of such a JobSet the MEGASCALE variables; JAX reads them."""
    found = manifest(capsys, *NEEDED, "--slices=2")
    replicated, _, pod = parts(found)
    assert replicated["replicas"] == 2
    assert found["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert "--config.mesh.slices=2" in pod["containers"][0]["command"]


def test_volumes(capsys):
    found = manifest(capsys, *ALL)
    _, job, pod = parts(found)
    bucket, claim = pod["volumes"]
    assert bucket["csi"] == {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {
            "bucketName": "robots",
            "mountOptions": gke.MOUNT_OPTIONS,
            "fileCacheCapacity": "200Gi",
            "fileCacheForRangeRead": "true",
            "hostNetworkPodKSA": "true",
        },
    }
    assert claim["persistentVolumeClaim"] == {"claimName": "weights"}
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert mounts == {bucket["name"]: "/bucket", claim["name"]: "/data"}
    assert job["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"


def test_who_and_where(capsys):
    found = manifest(capsys, *ALL)
    pod = parts(found)[2]
    assert found["metadata"]["namespace"] == "robots"
    assert found["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"}
    assert pod["serviceAccountName"] == "trainer"
    assert {"name": "A", "value": "b=c"} in pod["containers"][0]["env"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_nothing_that_was_not_asked_for(capsys):
    found = manifest(capsys, *NEEDED)
    _, job, pod = parts(found)
    assert set(found["metadata"]) == {"name", "annotations"}
    assert "metadata" not in job["template"]
    assert not {"volumes", "hostNetwork", "serviceAccountName"} & set(pod)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*NEEDED, "--topology=v5p:3x3x3", "--", *TRAIN], "v5p has 2x2x1"),
        ([*NEEDED, "--slices=0", "--", *TRAIN], "--slices is at least 1"),
        ([*NEEDED, "--topology=v6e:2x2", "--slices=2", "--", *TRAIN], "of several hosts each"),
        ([*NEEDED, "--name=Libero_4b", "--", *TRAIN], "lower-case letters"),
        ([*NEEDED, f"--name={'a' * 46}", "--", *TRAIN], "at most 45"),
        ([*NEEDED, "--env=HOME", "--", *TRAIN], "--env=HOME: expected NAME=VALUE"),
        ([*NEEDED, "--bucket-cache=1Gi", "--", *TRAIN], "--bucket-cache is of a --bucket"),
        ([*NEEDED, *TRAIN[1:]], "unrecognized arguments"),
        (NEEDED, "what to run goes behind --"),
    ],
)
def test_mistakes_are_told_before_anything_is_printed(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        gke.main(options)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and message in err and not out


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "launch.gke", *NEEDED, "--", *TRAIN]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert yaml.safe_load(out)["kind"] == "JobSet"
