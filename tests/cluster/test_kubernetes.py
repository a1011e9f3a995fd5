"""What `raysweep kubernetes` writes, against KubeRay's own schemas and rules; test_pods.py runs it as its operator would."""

import copy
import gzip
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tiny import make_cell

from raysweep.cluster import kubernetes
from raysweep.cluster.capacity import NODE_TYPES, AutoscalerLimits, autoscaler_limits, max_concurrent_cells
from raysweep.cluster.environment import HEAD
from raysweep.cluster.kubernetes import GI, OPERATOR, Request
from raysweep.errors import UserError
from raysweep.space.read import load
from raysweep.space.space import Space

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(__file__).parent / "kuberay"
VERSIONS = ("1.5.1", "1.7.0")
# What kubernetes/rayjob.yaml was written by.
EXAMPLE = (
    "raysweep kubernetes search_spaces/demo.yaml --image REGISTRY/raysweep:0.1.0 --store s3://my-bucket/demo "
    "--secret raysweep-bucket --nodes 4 --cpus-per-node 4 --node-label cloud.google.com/gke-spot=true --print"
)


def strict(schema: Any) -> Any:
    """A schema of Kubernetes as JSON Schema that refuses what is unknown, as kubectl does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | ({"pattern": schema["pattern"]} if "pattern" in schema else {})
    made = {key: value if key == "properties" else strict(value) for key, value in schema.items()}
    if "properties" in made:
        made["properties"] = {name: strict(value) for name, value in made["properties"].items()}
        made.setdefault("additionalProperties", False)
    return made


@cache
def rayjob(version: str) -> dict[str, Any]:
    schema: dict[str, Any] = strict(json.loads(gzip.decompress((SCHEMAS / f"rayjob-{version}.json.gz").read_bytes())))
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def cluster_spec(version: str) -> dict[str, Any]:
    spec: dict[str, Any] = rayjob(version)["properties"]["spec"]["properties"]["rayClusterSpec"]
    return spec


def accept(content: Any, schema: dict[str, Any]) -> None:
    for error in jsonschema.Draft202012Validator(schema).iter_errors(content):
        raise error


def printed(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "raysweep.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def make_space(name: str = "mine", **resources: dict[str, float]) -> Space:
    needs = {what: {"cpus": 1} | resources.get(what, {}) for what in ("train", "evaluate")}
    return Space.model_validate({"name": name, "cells": (make_cell(),), "resources": needs})


def write(folder: Path, **more: Any) -> Path:
    base = make_cell().model_dump(exclude={"seed"})
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "base": base, "cross": {"seed": [1, 2]}} | more))
    return file


def documents(file: Path, store: str, request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    config, job = yaml.safe_load_all(kubernetes.manifest(load(file), str(file), store, request))
    return config, job


REQUESTS = {
    "plain": Request("image"),
    "everything": Request(
        "registry:5000/a/b@sha256:abc",
        3,
        2,
        16,
        100,
        (("work", "/data"), ("text", "/text")),
        ("a", "b"),
        "who",
        (("k", "v"),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_kuberay_takes_the_job(version: str, request_: Request, tmp_path: Path) -> None:
    config, job = documents(write(tmp_path), "s3://bucket/mine", request_)
    accept(job, rayjob(version))
    assert VERSIONS[0] == OPERATOR
    broken = copy.deepcopy(job)
    broken["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="'imagee' was unexpected"):
        accept(broken, rayjob(version))
    broken = copy.deepcopy(job)
    broken["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "none"
    with pytest.raises(jsonschema.ValidationError, match="is not one of"):
        accept(broken, rayjob(version))
    # Rules of the operator's own that no schema has: suspend needs the first, names of jobs end at 47 characters.
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    assert config["metadata"]["name"] == job["metadata"]["name"]


@pytest.mark.parametrize("version", VERSIONS)
def test_kuberay_takes_the_cluster_that_stays(version: str) -> None:
    content = yaml.safe_load((ROOT / "kubernetes" / "raycluster.yaml").read_text())
    accept(content["spec"], cluster_spec(version))
    worker = content["spec"]["workerGroupSpecs"][0]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    head = content["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    (types,) = json.loads(next(entry["value"] for entry in head["env"] if entry["name"] == NODE_TYPES))
    variables = {entry["name"]: entry["value"] for entry in head["env"]}
    assert variables.items() >= HEAD.items()
    assert types["max_workers"] == worker["maxReplicas"]
    assert types["resources"] == {
        "CPU": int(limits["cpu"]), "GPU": int(limits["nvidia.com/gpu"]), "memory": int(limits["memory"][:-2]) * GI
    }  # fmt: skip


def test_the_example_is_what_the_command_writes() -> None:
    _, *arguments = shlex.split(EXAMPLE)
    answer = printed(*arguments)
    assert answer.returncode == 0, answer.stderr
    assert (ROOT / "kubernetes" / "rayjob.yaml").read_text() == answer.stdout
    assert EXAMPLE.removesuffix(" --print") in (ROOT / "docs" / "kubernetes.md").read_text().replace(" \\\n    ", " ")


def test_the_search_space_arrives_with_its_code(tmp_path: Path) -> None:
    package = tmp_path / "mycode"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "table.bin").write_bytes(b"\xff\x00")
    file = write(tmp_path, code=["mycode"])
    config, job = documents(file, "s3://bucket/mine", Request("image"))
    assert config["data"]["space.yaml"] == file.read_text()
    assert config["data"]["mycode--__init__.py"] == ""
    assert config["binaryData"] == {"mycode--inner--table.bin": "/wA="}
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]):
        volume = group["template"]["spec"]["volumes"][0]["configMap"]
        assert {item["path"]: item["key"] for item in volume["items"]} == {
            "space.yaml": "space.yaml", "mycode/__init__.py": "mycode--__init__.py",
            "mycode/inner/table.bin": "mycode--inner--table.bin",
        }  # fmt: skip
    (package / "large.txt").write_text("x" * 1_000_000)
    with pytest.raises(UserError, match=r"1,000,.* bytes; a ConfigMap holds 900,000"):
        documents(file, "s3://bucket/mine", Request("image"))


def test_no_secret_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "hush-hush")
    file = write(tmp_path)
    assert "hush-hush" not in kubernetes.manifest(load(file), str(file), "s3://b/mine", Request("i", secrets=("one",)))


def test_names_stay_apart() -> None:
    names = ["mine", "Mine", "mi_ne", "mi-ne", "x" * 60, "x" * 61, "1"]
    made = [kubernetes.job_name(make_space(name)) for name in names]
    assert len(set(made)) == len(names)
    assert made[0] == "raysweep-mine"
    for name in made:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", name), name


def test_the_sweep_knows_what_the_autoscaler_may_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, resources={"train": {"cpus": 4, "gpus": 1}, "evaluate": {"cpus": 1}})
    request = Request("image", nodes=3, gpus_per_node=2, cpus_per_node=8)
    _, job = documents(file, "s3://bucket/mine", request)
    spec = job["spec"]["rayClusterSpec"]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    monkeypatch.setenv(NODE_TYPES, next(entry["value"] for entry in head["env"] if entry["name"] == NODE_TYPES))
    limits = autoscaler_limits(None)
    assert limits == AutoscalerLimits([({"CPU": 8, "memory": 32 * GI, "GPU": 2}, 3)], 3)
    assert spec["workerGroupSpecs"][0]["maxReplicas"] == 3
    assert max_concurrent_cells(load(file), [{"CPU": 0}], limits).cells == 6
    assert kubernetes.cells_at_once(load(file), request) == 2  # As many as there are.
    monkeypatch.setenv(NODE_TYPES, "8 x GPU")
    with pytest.raises(UserError, match=r"^RAYSWEEP_NODE_TYPES=8 x GPU is not of the form"):
        autoscaler_limits(None)


@pytest.mark.parametrize(
    ("resources", "request_", "store", "said"),
    [
        ({"train": {"gpus": 1}}, Request("i"), "s3://b/x", r"^resources.train.gpus is 1: add --gpus-per-node 1$"),
        ({"train": {"cpus": 9}}, Request("i"), "s3://b/x", r"^resources.train.cpus is 9: --cpus-per-node 8 holds none"),
        ({}, Request("i", gpus_per_node=1), "s3://b/x", "resources.train.gpus is 0: set it to use them"),
        ({}, Request("i"), "/data/x", r"a folder of one pod and go with it: .*--claim NAME:/data\)"),
        ({}, Request("i", claims=(("c", "/dat"),)), "/data/x", "a folder of one pod"),
        ({"train": {"workers": 5, "cpus": 8}}, Request("i", nodes=4), "s3://b/x", "5 workers, and 4 nodes hold fewer"),
    ],
)
def test_what_could_not_run_is_refused(resources: Any, request_: Request, store: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        kubernetes.check(make_space(**resources), store, request_)


def test_a_store_on_a_volume_is_taken() -> None:
    kubernetes.check(make_space(), "/data/x", Request("i", claims=(("c", "/data"),)))


def test_errors_of_the_command_are_one_line() -> None:
    command = ("kubernetes", "search_spaces/demo.yaml", "--image", "i")
    for arguments, said in (
        (("--store", "runs/x"), "the store must be one that every node reaches"),
        (("--store", "s3://b/x", "--claim", "work"), "--claim work: the form is NAME:FOLDER"),
        (("--store", "s3://b/x", "--claim", "work:data"), "--claim work:data: an absolute folder is needed"),
        (("--store", "s3://b/x", "--node-label", "spot"), "--node-label spot: the form is KEY=VALUE"),
    ):
        answer = printed(*command, *arguments)
        assert answer.returncode == 1, answer.stdout
        assert said in answer.stderr
        assert answer.stderr.count("\n") == 1, answer.stderr


def test_without_kubectl_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="there is no kubectl here"):
        kubernetes.create("", "x", None)


def test_the_image_is_made_of_what_the_build_may_see() -> None:
    """What kubernetes/Dockerfile copies is let through by its .dockerignore, and is there."""
    seen = {
        line[1:] for line in (ROOT / "kubernetes" / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"
    }
    copied = {
        source
        for line in (ROOT / "kubernetes" / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    }
    assert copied == seen
    assert all((ROOT / source).exists() for source in copied)
