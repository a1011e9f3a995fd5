"""What `ray up` makes of the three cluster files, which nodes the autoscaler starts, and what a driver expects of it.

Ray reads, checks, chooses and launches here as it does for a user; only Amazon is moto's.
"""

import copy
import json
import os
import re
import shlex
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import boto3
import googleapiclient.discovery_cache
import jsonschema
import pytest
import yaml
from botocore.exceptions import ParamValidationError
from moto import mock_aws
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ray._private.gcs_utils import PlacementGroupTableData
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import utils as aws_utils
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE
from ray.core.generated.common_pb2 import PlacementStrategy
from tiny import make_cell

from raysweep.cluster import environment
from raysweep.cluster.capacity import DRIVER, AutoscalerLimits, Capacity, autoscaler_limits, max_concurrent_cells
from raysweep.space.space import Space

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster.gcp.yaml", "cluster.local.yaml")
SAME = "# Everything below is the same for every cloud.\n"
SCORER = "RAY_AUTOSCALER_UTILIZATION_SCORER"


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return content


def prepared(name: str) -> dict[str, Any]:
    """The file as `ray up` sees it, with Ray's defaults where the file says nothing."""
    configuration: dict[str, Any] = prepare_config(read(name))
    return configuration


def start_command(name: str, who: str) -> list[str]:
    """The words of the last command that starts Ray on the head or on a worker."""
    return shlex.split(read(name)[f"{who}_start_ray_commands"][-1])


# The files.


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name: str) -> None:
    configuration = prepared(name)
    validate_config(configuration)
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute'"):
        validate_config(configuration | {"idle_timeout_minute": 5})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
@pytest.mark.parametrize("name", FILES)
def test_corpora_go_to_the_larger_of_two_disks(name: str, tmp_path: Path) -> None:
    """The command that starts a worker, with the disk mounted elsewhere, and an `install` that needs no sudo."""
    command = read(name)["worker_start_ray_commands"][-1]
    own, home = tmp_path / "own", tmp_path / "home"
    shown = command.replace("/opt/dlami/nvme", str(own)).partition("ulimit")[0].replace("sudo ", "")
    script = f"export HOME={home}; {shown} echo cache=$RAYSWEEP_CACHE"
    environment = {"PATH": os.environ["PATH"], "USER": "root"}
    for own_size, wanted in (("64m", f"{own}/raysweep"), ("1m", ""), ("", "")):
        sizes = {home: "8m"} | ({own: own_size} if own_size else {})
        for folder, size in sizes.items():
            folder.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        try:
            said = subprocess.run(["bash", "-ec", script], env=environment, capture_output=True, text=True, check=True)
            assert said.stdout == f"cache={wanted}\n"
            assert (own / "raysweep").is_dir() == bool(wanted)
        finally:
            for folder in sizes:
                subprocess.run(["umount", "-l", folder], check=True)


def test_what_is_the_same_for_every_cloud_is() -> None:
    halves = {}
    for name in FILES:
        above, below = (yaml.safe_load(half) for half in (ROOT / name).read_text(encoding="utf-8").split(SAME))
        # YAML lets a key that comes twice replace the first.
        assert not set(above) & set(below)
        halves[name] = below
    aws = halves["cluster.yaml"]
    assert {"file_mounts", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"} <= set(aws)
    assert halves["cluster.gcp.yaml"] == aws
    # One's own machines need no cloud's library, are all started at once, and have what they are found to have.
    local = copy.deepcopy(aws)
    *first, install, last = aws["setup_commands"]
    local["setup_commands"] = [*first, install.replace('[aws,gcp]"', '"'), last]
    local["head_start_ray_commands"][-1] = (
        aws["head_start_ray_commands"][-1]
        .replace(f" {SCORER}=raysweep.cluster.autoscaling.spot_first", "")
        .replace("--head", "--head --num-cpus=0 --resources='{\"raysweep_driver\": 1}'")
    )
    assert halves["cluster.local.yaml"] == local


@pytest.mark.parametrize("name", FILES)
def test_ray_s_defaults_add_no_command(name: str) -> None:
    """Ray's defaults for the head are a `pip install` of its own, of other versions than those of constraints.txt."""
    file, configuration = read(name), prepared(name)
    assert configuration["head_setup_commands"] == file["setup_commands"]
    assert configuration["worker_setup_commands"] == [*file["setup_commands"], *file.get("worker_setup_commands", [])]
    assert not configuration["initialization_commands"]
    assert not configuration["docker"]


@pytest.mark.parametrize("name", FILES)
def test_what_the_nodes_need_of_the_repository_is_sent(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    mounts = read(name)["file_mounts"]
    for source in ("pyproject.toml", "constraints.txt", project["project"]["readme"], *packages):
        assert mounts[f"~/raysweep-source/{source}"] == source
        assert (ROOT / source).exists()
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", FILES)
def test_the_head_is_for_drivers_alone(name: str) -> None:
    words = start_command(name, "head")
    if name == "cluster.local.yaml":
        assert "--num-cpus=0" in words
        resources = next(word.partition("=")[2] for word in words if word.startswith("--resources="))
        assert json.loads(resources) == {DRIVER: 1}
    else:
        file = read(name)
        assert file["available_node_types"][file["head_node_type"]]["resources"] == {"CPU": 0, DRIVER: 1}
        workers = [kind for key, kind in file["available_node_types"].items() if key != file["head_node_type"]]
        assert not any(DRIVER in kind["resources"] for kind in workers)


@pytest.mark.parametrize("name", FILES)
def test_the_head_forgets_and_notices_as_every_head_does(name: str) -> None:
    set_there = dict(word.split("=", 1) for word in start_command(name, "head") if word.startswith("RAY_"))
    assert set_there.items() >= environment.HEAD.items()


@pytest.mark.parametrize("name", FILES)
def test_ports_do_not_collide_and_the_dashboard_is_not_open(name: str) -> None:
    for who in ("head", "worker"):
        words = start_command(name, who)
        options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        lowest, highest = int(options.pop("min-worker-port")), int(options.pop("max-worker-port"))
        ports = [int(value) for key, value in options.items() if key == "port" or key.endswith("-port")]
        assert len(ports) == (7 if who == "head" else 6)
        # Ray's own choice for the dashboard and for Ray Client.
        ports += [8265, 10001]
        assert len(ports) == len(set(ports))
        assert not any(lowest <= port <= highest for port in ports)
    assert "--dashboard-host=127.0.0.1" in start_command(name, "head")


# What is installed.


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    assert len({canonicalize_name(pin.name) for pin in found}) == len(found)
    return {canonicalize_name(pin.name): pin for pin in found}


def wanted(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, the package's own extras left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "raysweep"]


@pytest.mark.parametrize("name", FILES)
def test_nodes_install_what_constraints_txt_says(name: str) -> None:
    (install,) = (shlex.split(command) for command in read(name)["setup_commands"] if "pip install" in command)
    assert install[install.index("--constraint") + 1] == "~/raysweep-source/constraints.txt"
    extras = "" if name == "cluster.local.yaml" else "[aws,gcp]"
    assert install[-1] == f"$HOME/raysweep-source{extras}"


def test_constraints_txt_pins_exactly() -> None:
    for pin in pins().values():
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert str(Version(specifier.version)) == specifier.version, pin
        assert [pin.url, pin.extras, pin.marker] == [None, set(), None], pin


def test_constraints_txt_is_within_the_ranges_of_pyproject_toml() -> None:
    pinned = pins()
    for requirement in wanted("aws", "gcp", "mlflow", "dev"):
        (specifier,) = pinned[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(specifier.version), requirement


def test_constraints_txt_pins_what_the_dependencies_depend_on() -> None:
    """Of everything that Python 3.12 on a node installs; on nodes torch brings CUDA too, which it pins itself."""
    pinned, missing = pins(), set()
    seen: set[tuple[str, str]] = set()
    ahead = [(requirement, "raysweep") for requirement in wanted("aws", "gcp")]
    while ahead:
        requirement, of = ahead.pop()
        name = canonicalize_name(requirement.name)
        if name not in pinned:
            missing.add(f"{name} (of {of})")
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            try:
                lines = requires(name) or []
            except PackageNotFoundError:
                continue
            for needed in map(Requirement, lines):
                python = {"python_version": "3.12", "python_full_version": "3.12.3", "extra": extra}
                if needed.marker is None or needed.marker.evaluate(python):
                    ahead.append((needed, name))
    assert len(seen) > 100
    assert not missing


# Which nodes the autoscaler starts. A node of cluster.yaml holds 8 CPUs and 1 GPU, and there are at most 8 of them.

CELL = {"CPU": 8, "GPU": 1}


def tracker(now: float, **asked: tuple[float, bool]) -> NodeProviderAvailabilityTracker:
    """What Ray remembers at time `now` of node types that were asked for, at a time, and came or did not."""
    found = NodeProviderAvailabilityTracker(timer=lambda: now)
    for name, (when, came) in asked.items():
        failure = None if came else NodeLaunchException("InsufficientInstanceCapacity", "none to be had", None)
        found.update_node_availability(name, int(when), failure)
    return found


def launched(
    cells: list[list[dict[str, float]]],
    *,
    scorer: bool = True,
    present: dict[str, int] | None = None,
    remembered: NodeProviderAvailabilityTracker | None = None,
    types: dict[str, Any] | None = None,
) -> dict[str, int]:
    """What v1 of Ray's autoscaler starts for cells' placement groups, beside the head and the nodes that there are."""
    configuration = prepared("cluster.yaml")
    words = start_command("cluster.yaml", "head")
    assert "RAY_enable_autoscaler_v2=0" in words
    (named,) = (word.partition("=")[2] for word in words if word.startswith(f"{SCORER}="))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(SCORER, raising=False)
        if scorer:
            patch.setenv(SCORER, named)
        scheduler = ResourceDemandScheduler(
            provider=None,
            node_types=types or configuration["available_node_types"],
            max_workers=configuration["max_workers"],
            head_node_type=configuration["head_node_type"],
            upscaling_speed=configuration["upscaling_speed"],
        )
    groups = []
    for bundles in cells:
        group = PlacementGroupTableData(strategy=PlacementStrategy.PACK)
        for bundle in bundles:
            group.bundles.add().unit_resources.update(bundle)
        groups.append(group)
    nodes, _ = scheduler.get_nodes_to_launch(
        nodes=[],
        launching_nodes={"head": 1, **(present or {})},
        resource_demands=[],
        unused_resources_by_ip={},
        pending_placement_groups=groups,
        max_resources_by_ip={},
        ensure_min_cluster_size=[],
        node_availability_summary=(remembered or tracker(0)).summary(),
    )
    return dict(nodes)


@pytest.mark.parametrize(
    ("cells", "nodes"),
    [
        ([[CELL]] * 3, {"spot": 3}),
        # Two to a GPU: five cells, three nodes.
        ([[{"CPU": 4, "GPU": 0.5}]] * 5, {"spot": 3}),
        # Two workers each on a node of its own.
        ([[CELL, CELL]] * 2, {"spot": 4}),
        # Cells without a GPU share the CPUs of the only nodes that there are: 4 to a node.
        ([[{"CPU": 2}]] * 9, {"spot": 3}),
        ([[CELL]] * 20, {"spot": 8}),
        ([], {}),
    ],
)
def test_cells_start_spot_nodes(cells: list[list[dict[str, float]]], nodes: dict[str, int]) -> None:
    assert launched(cells) == nodes


def test_on_demand_nodes_where_there_are_no_spot_ones() -> None:
    none_to_be_had = tracker(60, spot=(0, False))
    assert launched([[CELL]] * 3, remembered=none_to_be_had) == {"on_demand": 3}
    # Those that Ray got before stay, and count.
    assert launched([[CELL]] * 20, present={"spot": 5}, remembered=none_to_be_had) == {"on_demand": 3}


def test_spot_nodes_again_once_they_can_be_had() -> None:
    assert launched([[CELL]], remembered=tracker(60, spot=(0, True))) == {"spot": 1}
    # Ray forgets after half an hour.
    assert launched([[CELL]], remembered=tracker(29 * 60, spot=(0, False))) == {"on_demand": 1}
    assert launched([[CELL]], remembered=tracker(31 * 60, spot=(0, False))) == {"spot": 1}


def test_where_there_are_none_of_either_it_still_asks() -> None:
    assert launched([[CELL]] * 3, remembered=tracker(60, spot=(0, False), on_demand=(0, False))) == {"spot": 3}
    assert launched([[CELL]] * 3, remembered=tracker(60, spot=(0, True), on_demand=(0, False))) == {"spot": 3}


@pytest.mark.parametrize("present", [{}, {"spot": 5}, {"spot": 3, "on_demand": 2}, {"spot": 8}, {"on_demand": 8}])
def test_never_more_nodes_than_max_workers(present: dict[str, int]) -> None:
    here = sum(present.values())
    for remembered in (tracker(60), tracker(60, spot=(0, False)), tracker(60, spot=(0, False), on_demand=(0, False))):
        assert here + sum(launched([[CELL]] * 40, present=present, remembered=remembered).values()) == 8


@pytest.mark.parametrize("bundle", [{"CPU": 9}, {"CPU": 1, "GPU": 2}, {"CPU": 1, DRIVER: 0.001}, {DRIVER: 2}])
def test_what_fits_no_type_starts_nothing(bundle: dict[str, float]) -> None:
    assert launched([[bundle]]) == {}
    assert launched([[bundle]], remembered=tracker(60, spot=(0, False))) == {}


def test_what_ray_would_do_by_itself() -> None:
    """This is what `spot_first` is for: Ray takes the last of the names, and takes it again where there is none of it."""
    assert launched([[CELL]] * 3, scorer=False) == {"spot": 3}
    assert launched([[CELL]] * 3, scorer=False, remembered=tracker(60, spot=(0, False))) == {"spot": 3}
    types = prepared("cluster.yaml")["available_node_types"]
    types["standard"] = types.pop("on_demand")
    assert launched([[CELL]] * 3, scorer=False, types=types) == {"standard": 3}
    assert launched([[CELL]] * 3, types=types) == {"spot": 3}
    assert launched([[CELL]] * 3, types=types, remembered=tracker(60, spot=(0, False))) == {"standard": 3}


def test_cells_without_a_gpu_leave_gpus_alone_where_there_are_nodes_without() -> None:
    types = prepared("cluster.yaml")["available_node_types"]
    types["cheap"] = {**types["on_demand"], "resources": {"CPU": 16}}
    assert launched([[{"CPU": 8}]] * 4, types=types) == {"cheap": 2}
    assert launched([[CELL]] * 2, types=types) == {"spot": 2}


# Amazon.


@pytest.fixture(scope="module")
def amazon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """cluster.yaml after what `ray up` does with it before it starts the head, in an account that is moto's."""
    caches = aws_utils.resource_cache, aws_utils.client_cache, aws_config._get_subnets_or_die
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "of-nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "of-nobody")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        # Where the key goes.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for cache in caches:
            cache.cache_clear()
        try:
            with mock_aws():
                # What docs/cluster.md has the user make.
                (roles,) = re.findall(
                    "^for role in (.*); do$", (ROOT / "docs/cluster.md").read_text("utf-8"), re.MULTILINE
                )
                for role in roles.split():
                    boto3.client("iam").create_instance_profile(InstanceProfileName=role)
                yield aws_config.bootstrap_aws(prepared("cluster.yaml"))
        finally:
            for cache in caches:
                cache.cache_clear()


def node_configs(configuration: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: kind["node_config"] for name, kind in configuration["available_node_types"].items()}


def test_the_key_is_for_its_owner_alone(amazon: dict[str, Any]) -> None:
    key = Path(amazon["auth"]["ssh_private_key"])
    assert key.parent == Path("~/.ssh").expanduser()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert {config["KeyName"] for config in node_configs(amazon).values()} == {key.stem}


def test_only_ssh_comes_in(amazon: dict[str, Any]) -> None:
    (group,) = {group for config in node_configs(amazon).values() for group in config["SecurityGroupIds"]}
    (found,) = boto3.client("ec2", "us-west-2").describe_security_groups(GroupIds=[group])["SecurityGroups"]
    rules = []
    for rule in found["IpPermissions"]:
        assert not rule["Ipv6Ranges"]
        assert not rule["PrefixListIds"]
        sources = [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] + [r["CidrIp"] for r in rule["IpRanges"]]
        rules.append((rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort"), sources))
    # Protocol -1 is every protocol, of every port.
    assert sorted(rules, key=str) == [("-1", None, None, [group]), ("tcp", 22, 22, ["0.0.0.0/0"])]


def test_nodes_may_be_in_every_zone_of_the_region(amazon: dict[str, Any]) -> None:
    """A GPU that one zone has none of may be had in the next."""
    client = boto3.client("ec2", "us-west-2")
    zones = {zone["ZoneName"] for zone in client.describe_availability_zones()["AvailabilityZones"]}
    assert len(zones) > 1
    for config in node_configs(amazon).values():
        subnets = client.describe_subnets(SubnetIds=config["SubnetIds"])["Subnets"]
        assert {subnet["AvailabilityZone"] for subnet in subnets} == zones


def test_the_instances_have_what_the_file_says_of_them(amazon: dict[str, Any]) -> None:
    """By Amazon's own description of them, of which moto has a copy."""
    kinds = amazon["available_node_types"]
    names = sorted({kind["node_config"]["InstanceType"] for kind in kinds.values()})
    described = {
        kind["InstanceType"]: kind
        for kind in boto3.client("ec2", "us-west-2").describe_instance_types(InstanceTypes=names)["InstanceTypes"]
    }
    for name in ("spot", "on_demand"):
        instance = described[kinds[name]["node_config"]["InstanceType"]]
        gpus = sum(gpu["Count"] for gpu in instance["GpuInfo"]["Gpus"])
        assert kinds[name]["resources"] == {"CPU": instance["VCpuInfo"]["DefaultVCpus"], "GPU": gpus}
    assert described[kinds["head"]["node_config"]["InstanceType"]]["MemoryInfo"]["SizeInMiB"] == 32 * 1024


def launch(amazon: dict[str, Any], name: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """The instance that Ray's provider starts, and what it asked Amazon for, field by field."""
    provider = AWSNodeProvider(amazon["provider"], amazon["cluster_name"])
    asked: list[dict[str, Any]] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        asked.append(params["body"])

    events = provider.ec2_fail_fast.meta.client.meta.events
    events.register("before-call.ec2.RunInstances", note)
    tags = {
        TAG_RAY_NODE_KIND: "head" if name == "head" else "worker",
        TAG_RAY_USER_NODE_TYPE: name,
        TAG_RAY_NODE_NAME: f"ray-raysweep-{name}",
    }
    try:
        (instance,) = provider.create_node(node_configs(amazon)[name] | changes, tags, 1).values()
    finally:
        events.unregister("before-call.ec2.RunInstances", note)
    instance.load()
    return instance, asked[-1]


@pytest.mark.parametrize(
    ("name", "role", "market"),
    [
        ("head", "raysweep-head", None),
        ("spot", "raysweep-worker", "spot"),
        ("on_demand", "raysweep-worker", None),
    ],
)
def test_ray_launches_it(amazon: dict[str, Any], name: str, role: str, market: str | None) -> None:
    config = node_configs(amazon)[name]
    assert config["IamInstanceProfile"] == {"Name": role}
    assert (config.get("InstanceMarketOptions") or {}).get("MarketType") == market
    instance, asked = launch(amazon, name)
    assert instance.iam_instance_profile["Arn"].endswith(f"instance-profile/{role}")
    assert instance.instance_lifecycle == market
    assert instance.instance_type == config["InstanceType"]
    assert instance.metadata_options["HttpTokens"] == "required"
    # The image's name goes out as it is: Amazon looks it up, and moto takes it for an id.
    assert asked["ImageId"].startswith("resolve:ssm:/aws/service/")
    assert asked["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
    assert asked["BlockDeviceMapping.1.Ebs.VolumeSize"] == (1100 if name == "head" else 750)
    assert asked["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    # `InstanceMarketOptions: {}` sends nothing.
    options = {key: value for key, value in asked.items() if key.startswith("InstanceMarketOptions")}
    assert options == ({"InstanceMarketOptions.MarketType": market} if market else {})


def test_a_field_that_amazon_does_not_know_is_refused(amazon: dict[str, Any]) -> None:
    """Which is why `test_ray_launches_it` says something of every field."""
    with pytest.raises(ParamValidationError, match="MetadataOption"):
        launch(amazon, "spot", MetadataOption={"HttpTokens": "required"})
    with pytest.raises(ParamValidationError, match="Encripted"):
        launch(amazon, "spot", BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"Encripted": True}}])


# Google.


def test_google_s_nodes_have_the_form_of_its_interface() -> None:
    """Ray passes on what it is given; the description of the interface comes with Google's library."""
    documents = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    schemas = json.loads((documents / "compute.v1.json").read_text(encoding="utf-8"))["schemas"]

    def check(value: Any, schema: dict[str, Any], where: str) -> None:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        python = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}[schema["type"]]
        # An int64 is written as a string.
        assert isinstance(value, python) or (isinstance(value, int) and schema.get("format") == "int64"), where
        if isinstance(value, dict):
            for key, item in value.items():
                assert key in schema["properties"], f"{where}.{key}"
                check(item, schema["properties"][key], f"{where}.{key}")
        if isinstance(value, list):
            for item in value:
                check(item, schema["items"], where)

    for name, config in node_configs(read("cluster.gcp.yaml")).items():
        check(config, schemas["Instance"], name)


# What a driver expects of the autoscaler.

HEAD: dict[str, float] = {"memory": 2e10, DRIVER: 1}  # ray.nodes() leaves out what there is 0 of.
GPU_NODE: dict[str, float] = {"CPU": 8, "GPU": 1}


def make_space(
    cpus: int = 8, gpus: float = 1, workers: int = 1, evaluation_cpus: int = 1, evaluation_gpus: float = 0
) -> Space:
    resources = {
        "train": {"workers": workers, "cpus": cpus, "gpus": gpus},
        "evaluate": {"cpus": evaluation_cpus, "gpus": evaluation_gpus},
    }
    return Space.model_validate({"name": "tiny", "cells": (make_cell(),), "resources": resources})


def read_limits(monkeypatch: pytest.MonkeyPatch, path: Path | None) -> AutoscalerLimits | None:
    return autoscaler_limits(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, AutoscalerLimits([(GPU_NODE, 8), (GPU_NODE, 8)], 8)),
        # The most of all together is the most of each.
        ({"max_workers": 3}, AutoscalerLimits([(GPU_NODE, 3), (GPU_NODE, 3)], 3)),
        ({"max_workers": 20}, AutoscalerLimits([(GPU_NODE, 8), (GPU_NODE, 8)], 20)),
    ],
)
def test_growth_is_read_from_what_ray_up_leaves_on_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: AutoscalerLimits
) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(prepared("cluster.yaml") | changes))
    assert read_limits(monkeypatch, file) == expected


def test_growth_where_a_type_has_no_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    types = {"head": {"resources": {"CPU": 0}}, "spot": {"resources": {"CPU": 4}}}
    file.write_text(yaml.safe_dump({"max_workers": 5, "head_node_type": "head", "available_node_types": types}))
    assert read_limits(monkeypatch, file) == AutoscalerLimits([({"CPU": 4}, 5)], 5)


def test_one_s_own_machines_do_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they hold is known when they are there, so that nothing may be refused beforehand."""
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(prepared("cluster.local.yaml")))
    assert read_limits(monkeypatch, file) is None


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "{not yaml", "max_workers: 8", "{max_workers: many, head_node_type: h, available_node_types: {}}"],
)
def test_a_configuration_that_cannot_be_read_is_no_autoscaler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    assert read_limits(monkeypatch, file) is None
    file.write_text(text)
    assert read_limits(monkeypatch, file) is None
    assert read_limits(monkeypatch, None) is None


BOTH = AutoscalerLimits([(GPU_NODE, 8), (GPU_NODE, 8)], 8)  # cluster.yaml's


@pytest.mark.parametrize(
    ("space", "nodes", "grows", "places", "grown"),
    [
        # Without an autoscaler: what there is. A node holds one, or two that share its GPU.
        (make_space(), [HEAD, GPU_NODE, GPU_NODE], None, 2, None),
        (make_space(cpus=4, gpus=0.5), [HEAD, GPU_NODE, GPU_NODE], None, 4, None),
        (make_space(workers=2), [GPU_NODE] * 5, None, 2, None),
        # With one: 8 nodes whichever the type, not 16.
        (make_space(), [HEAD, GPU_NODE], BOTH, 8, True),
        (make_space(cpus=2, gpus=0.25), [HEAD, GPU_NODE], BOTH, 32, True),
        (make_space(), [GPU_NODE], AutoscalerLimits([(GPU_NODE, 2), (GPU_NODE, 3)], 8), 5, True),
        # More nodes than may be: the limit was lowered, or somebody added some.
        (make_space(), [GPU_NODE] * 3, AutoscalerLimits([(GPU_NODE, 2)], 2), 3, True),
        # The best nodes count: two that hold 4 each, and two that hold one each.
        (
            make_space(cpus=4, gpus=0),
            [{"CPU": 4}],
            AutoscalerLimits([({"CPU": 4}, 8), ({"CPU": 16}, 2)], 4),
            2 * 4 + 2 * 1,
            True,
        ),
        # The workers of a cell on nodes of their own: 8 nodes are two cells of three, two of four, one of eight.
        (make_space(workers=3), [HEAD, *[GPU_NODE] * 3], BOTH, 2, True),
        (make_space(workers=4), [HEAD, *[GPU_NODE] * 4], BOTH, 2, True),
        (make_space(workers=8), [HEAD, *[GPU_NODE] * 8], BOTH, 1, True),
        # Two workers of 4 CPUs to a node.
        (make_space(workers=4, cpus=4, gpus=0), [HEAD, *[GPU_NODE] * 2], BOTH, 4, True),
    ],
)
def test_max_concurrent_cells(
    space: Space, nodes: list[dict[str, float]], grows: AutoscalerLimits | None, places: int, grown: bool | None
) -> None:
    assert max_concurrent_cells(space, nodes, grows) == Capacity(places, "", grown)


def test_no_node_holds_a_cell_and_none_will_come() -> None:
    assert max_concurrent_cells(make_space(cpus=9), [HEAD, GPU_NODE], None) == Capacity(
        0,
        "a cell of tiny asks for 9 CPU and 1 GPU and the cluster's nodes have 0 CPU, 8 CPU and 1 GPU",
        None,
    )


@pytest.mark.parametrize(
    ("space", "places", "who"),
    [
        (make_space(), 8, "a cell of tiny asks for 8 CPU and 1 GPU"),
        (make_space(cpus=1, gpus=0), 64, "a cell of tiny asks for 1 CPU"),
        (make_space(workers=3), 2, "each of the 3 workers of a cell of tiny asks for 8 CPU and 1 GPU"),
        (make_space(workers=8), 1, "each of the 8 workers of a cell of tiny asks for 8 CPU and 1 GPU"),
    ],
)
def test_no_node_holds_a_cell_yet(space: Space, places: int, who: str) -> None:
    assert max_concurrent_cells(space, [HEAD], BOTH) == Capacity(
        places, f"{who} and the cluster's nodes have 0 CPU", True
    )


def test_no_node_holds_an_evaluation_yet() -> None:
    # The node that there is holds 8 cells of one CPU, the two that can come 16.
    space = make_space(cpus=1, gpus=0, evaluation_gpus=1)
    assert max_concurrent_cells(space, [{"CPU": 8}], AutoscalerLimits([(GPU_NODE, 2)], 2)) == Capacity(
        16,
        "an evaluation of tiny asks for 1 CPU and 1 GPU and the cluster's nodes have 8 CPU",
        True,
    )


NEVER = "and the cluster's nodes and node types have 0 CPU, 8 CPU and 1 GPU"


@pytest.mark.parametrize(
    ("space", "grows", "why"),
    [
        (make_space(cpus=16), BOTH, f"a cell of tiny asks for 16 CPU and 1 GPU {NEVER}"),
        (
            make_space(workers=2, cpus=16, gpus=0),
            BOTH,
            f"each of the 2 workers of a cell of tiny asks for 16 CPU {NEVER}",
        ),
        (make_space(evaluation_cpus=9), BOTH, f"an evaluation of tiny asks for 9 CPU {NEVER}"),
        # A type of which there may be none is none.
        (
            make_space(cpus=16),
            AutoscalerLimits([({"CPU": 64, "GPU": 8}, 0), (GPU_NODE, 8)], 8),
            f"a cell of tiny asks for 16 CPU and 1 GPU {NEVER}",
        ),
    ],
)
@pytest.mark.parametrize("nodes", [[HEAD], [HEAD, GPU_NODE]], ids=["before", "after"])
def test_no_type_holds_it(nodes: list[dict[str, float]], space: Space, grows: AutoscalerLimits, why: str) -> None:
    assert max_concurrent_cells(space, nodes, grows) == Capacity(0, why, False)


@pytest.mark.parametrize(
    ("space", "grows"),
    [
        # Nine nodes, where there are eight at most.
        (make_space(workers=9), BOTH),
        (make_space(workers=4), AutoscalerLimits([(GPU_NODE, 3)], 8)),
        # Two nodes of one worker each.
        (make_space(workers=3), AutoscalerLimits([(GPU_NODE, 8)], 2)),
    ],
)
def test_a_cell_of_more_workers_than_nodes_can_come_is_refused(space: Space, grows: AutoscalerLimits) -> None:
    """Otherwise the sweep waits for ever for nodes that the autoscaler may not start."""
    for nodes in ([HEAD], [HEAD, GPU_NODE]):
        found = max_concurrent_cells(space, nodes, grows)
        assert (found.cells, found.grows) == (0, False)
        assert (
            f"each of the {space.resources.train.workers} workers of a cell of tiny asks for 8 CPU and 1 GPU"
            in found.why_none
        )


def test_the_head_s_own_cores_count_beside_the_nodes_that_come() -> None:
    # 4 cells of one CPU on the head, which is none of the at most two workers, and 8 on each of those.
    head = {"CPU": 4, DRIVER: 1}
    assert max_concurrent_cells(make_space(cpus=1, gpus=0), [head], AutoscalerLimits([(GPU_NODE, 2)], 2)) == Capacity(
        20, "", True
    )
