"""A sweep as a RayJob of KubeRay: the manifest, which a person can read and edit, and what gives it to Kubernetes.

The job has a Ray cluster of its own: a head, where the sweep runs, and workers that KubeRay's autoscaler brings while cells
wait. The search space, its hypotheses and its own code travel in a ConfigMap.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

import yaml

from raysweep.cluster import program
from raysweep.cluster.capacity import DRIVER, NODE_TYPES, Needs, cells_on, check_gpus, slots, trials_memory
from raysweep.cluster.environment import HEAD
from raysweep.cluster.head import SPACE, files_of
from raysweep.errors import UserError
from raysweep.space.space import Space

OPERATOR = "1.5.1"
"""The oldest KubeRay that knows everything in the manifest: `authOptions` is the newest of it."""

# Where the pods have the search space, and what is theirs alone.
STUDY, _CACHE = "/raysweep/study", "/raysweep/cache"

# Of the user in the image (kubernetes/Dockerfile).
_USER = 1000

_LONGEST_NAME = 47  # KubeRay's MaxRayJobNameLength.

_LONGEST_STUDY = 900_000
"""Bytes: a ConfigMap has at most a mebibyte."""

GI = 2**30


@dataclass(frozen=True)
class Request:
    """What the pods of a job are."""

    image: str
    nodes: int = 8
    """The most workers at once."""
    gpus_per_node: int = 0
    cpus_per_node: int = 8
    memory_per_node: int | None = None
    """GiB; None for 4 for each core."""
    claims: tuple[tuple[str, str], ...] = ()
    """PersistentVolumeClaims, each with the folder where every pod sees it."""
    secrets: tuple[str, ...] = ()
    """Secrets whose entries are environment variables of every pod: credentials of a bucket, HF_TOKEN."""
    service_account: str | None = None
    """Who the pods are to the cloud, where it gives credentials that way."""
    labels: tuple[tuple[str, str], ...] = ()
    """Of the nodes that workers run on, such as spot nodes; a taint of the same name is tolerated."""

    @property
    def worker(self) -> dict[str, float]:
        """What a worker has to train on."""
        return {"CPU": self.cpus_per_node, "GPU": self.gpus_per_node}

    @property
    def memory(self) -> int:
        """GiB of a worker."""
        return self.memory_per_node or 4 * self.cpus_per_node


def check(space: Space, store: str, request: Request) -> None:
    """Raise `UserError` where no cell could run in such pods, or where their store would be each pod's own."""
    needs: dict[str, Needs] = {"resources.train": space.resources.train, "resources.evaluate": space.resources.evaluate}
    check_gpus(needs, request.gpus_per_node)
    for setting, one in needs.items():
        if not slots([request.worker], one.cpus, one.gpus):
            raise UserError(f"{setting}.cpus is {one.cpus:g}: --cpus-per-node {request.cpus_per_node} holds none of it")
    if not cells_at_once(space, request):
        raise UserError(
            f"a cell has {space.resources.train.workers} workers, and {request.nodes} nodes hold fewer: raise --nodes"
        )
    if "://" not in store and not any(PurePosixPath(store).is_relative_to(path) for _, path in request.claims):
        raise UserError(
            f"the store {store} would be a folder of one pod and go with it: name a bucket (--store s3://bucket/folder), or "
            f"a volume that all pods share (--claim NAME:{PurePosixPath(store).parent})"
        )


def job_name(space: Space) -> str:
    """The name of a search space's RayJob: lower case, digits and hyphens, as Kubernetes has names."""
    plain = f"raysweep-{re.sub(r'[^a-z0-9]+', '-', space.name.lower()).strip('-')}"
    if plain == f"raysweep-{space.name}" and len(plain) <= _LONGEST_NAME:
        return plain
    mark = hashlib.sha256(space.name.encode()).hexdigest()[:6]  # Names that differ in what is left out stay apart.
    return f"{plain[: _LONGEST_NAME - 7].rstrip('-')}-{mark}"


def cells_at_once(space: Space, request: Request) -> int:
    """How many cells train at the same time when all workers are there; 0 where not one does."""
    return min(len(space.cells), cells_on(space, [request.worker] * request.nodes))


def manifest(space: Space, file: str, store: str, request: Request) -> str:
    """The text of the manifest: a ConfigMap with the search space's file and what belongs to it, and a RayJob."""
    study = files_of(file)
    size = sum(map(len, study.values()))
    if size > _LONGEST_STUDY:
        raise UserError(
            f"{file} and what belongs to it have {size:,} bytes; a ConfigMap holds {_LONGEST_STUDY:,}: shorten it, or "
            "install the code in the image and leave `code` out"
        )
    keys = {path: re.sub(r"[^-._a-zA-Z0-9]", "_", path.replace("/", "--")) for path in study}
    if len(set(keys.values())) < len(keys):
        raise UserError(f"{file}: two files of its code have names that differ only in odd characters: rename one")
    text = {keys[path]: _text(content) for path, content in study.items()}
    name = job_name(space)
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {key: content for key, content in text.items() if content is not None},
    }
    binary = {
        keys[path]: base64.b64encode(content).decode() for path, content in study.items() if text[keys[path]] is None
    }
    if binary:
        config["binaryData"] = binary
    volume = {
        "name": "study",
        "configMap": {"name": name, "items": [{"key": keys[path], "path": path} for path in study]},
    }
    types = [{"resources": _resources(request), "max_workers": request.nodes}]
    command = ["raysweep", "run", f"{STUDY}/{SPACE}", "--store", store]
    # A trial of each cell that trains, and Ray's own processes.
    head_memory = 6 + trials_memory(cells_at_once(space, request))
    return _MANIFEST.format(
        operator=OPERATOR,
        config=_yaml(config, 0),
        name=name,
        entrypoint=json.dumps(shlex.join(command)),
        ray=version("ray"),
        driver=json.dumps(json.dumps({DRIVER: 1})),
        head=_yaml(_pod("ray-head", request, volume, 4, head_memory, 0, {NODE_TYPES: json.dumps(types), **HEAD}), 10),
        nodes=request.nodes,
        worker=_yaml(
            _pod("ray-worker", request, volume, request.cpus_per_node, request.memory, request.gpus_per_node, {})
            | _where(request),
            10,
        ),
    )


_MANIFEST = """\
# Written by `raysweep kubernetes`; yours to edit, and to give to `kubectl create -f`. KubeRay {operator} or later.
{config}
---
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: {name}
spec:
  entrypoint: {entrypoint}
  # Where the sweep ends with cells that failed it is run twice more, on a new cluster. What is done is not computed again.
  backoffLimit: 2
  # The cluster goes ten minutes after the sweep is done; suspend (docs/kubernetes.md) needs this too.
  shutdownAfterJobFinishes: true
  ttlSecondsAfterFinished: 600
  rayClusterSpec:
    rayVersion: "{ray}"  # The image's.
    authOptions:
      mode: token  # The operator makes it. Without it no one talks to the cluster.
    enableInTreeAutoscaling: true
    autoscalerOptions:
      idleTimeoutSeconds: 300
    headGroupSpec:
      rayStartParams:
        num-cpus: "0"  # No cell trains here: the head is for the sweep itself and its trials.
        resources: '{driver}'
      template:
        spec:
{head}
    workerGroupSpecs:
    - groupName: workers
      replicas: 0
      minReplicas: 0
      maxReplicas: {nodes}
      rayStartParams: {{}}
      template:
        spec:
{worker}
"""


def _resources(request: Request) -> dict[str, int]:
    """What Ray counts on a worker."""
    return {"CPU": request.cpus_per_node, "memory": request.memory * GI} | (
        {"GPU": request.gpus_per_node} if request.gpus_per_node else {}
    )


def _pod(
    name: str, request: Request, study: dict[str, Any], cpus: int, memory: int, gpus: int, variables: dict[str, str]
) -> dict[str, Any]:
    """The specification of a pod with one container."""
    resources = {"cpu": str(cpus), "memory": f"{memory}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    container = {
        "name": name,
        "image": request.image,
        "env": [{"name": key, "value": value} for key, value in {"RAYSWEEP_CACHE": _CACHE, **variables}.items()],
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": [
            {"name": "study", "mountPath": STUDY},
            {"name": "cache", "mountPath": _CACHE},
            *({"name": f"claim-{number}", "mountPath": path} for number, (_, path) in enumerate(request.claims)),
        ],
    }
    if request.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in request.secrets]
    pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": _USER, "fsGroup": _USER},
        "containers": [container],
        "volumes": [
            study,
            {"name": "cache", "emptyDir": {}},  # Tokenized text, for as long as the pod lives.
            *(
                {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
                for number, (claim, _) in enumerate(request.claims)
            ),
        ],
    }
    return pod | ({"serviceAccountName": request.service_account} if request.service_account else {})


def _where(request: Request) -> dict[str, Any]:
    """On which nodes workers run."""
    tolerated = [{"key": key, "operator": "Equal", "value": value} for key, value in request.labels]
    if request.gpus_per_node:
        tolerated.append({"key": "nvidia.com/gpu", "operator": "Exists"})
    return ({"nodeSelector": dict(request.labels)} if request.labels else {}) | (
        {"tolerations": tolerated} if tolerated else {}
    )


def _text(content: bytes) -> str | None:
    """A file as text; None where it is none."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


class _Dumper(yaml.SafeDumper):
    """Several lines as a block, and no aliases, so that it reads as people write it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _line_by_line(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _line_by_line)


def _yaml(content: dict[str, Any], indent: int) -> str:
    lines = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000).splitlines()
    return "\n".join(f"{' ' * indent}{line}" if line else "" for line in lines)


def create(text: str, name: str, namespace: str | None) -> None:
    """Give a manifest to kubectl. Raises `UserError` where Kubernetes refuses it, or has a job of that name."""
    answer = program.run(
        "kubectl", "create", "-f", "-", *(["--namespace", namespace] if namespace else []),
        missing="run this where it is, or add --print for the manifest", given=text,
    )  # fmt: skip
    if answer.returncode and "AlreadyExists" in answer.stderr:
        raise UserError(
            f"{name} is there already: `kubectl get rayjob {name}` shows it; to start again (the store stays), "
            f"`kubectl delete rayjob,configmap {name}` first"
        )
    if answer.returncode:
        raise program.refused("kubectl", answer)
