"""kubernetes: a sweep as a RayJob of KubeRay."""

from __future__ import annotations

import argparse

from raysweep.cli.options import load_space
from raysweep.cluster import kubernetes
from raysweep.cluster.head import shared_store
from raysweep.errors import UserError


def create(options: argparse.Namespace) -> int:
    """`raysweep kubernetes`."""
    space = load_space(options)
    store = shared_store(options.store)
    request = kubernetes.Request(
        image=options.image,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        cpus_per_node=options.cpus_per_node,
        memory_per_node=options.memory_per_node,
        claims=tuple(_parts("--claim", claim, ":", "NAME:FOLDER") for claim in options.claim),
        secrets=tuple(options.secret),
        service_account=options.service_account,
        labels=tuple(_parts("--node-label", label, "=", "KEY=VALUE") for label in options.node_label),
    )
    for claim, folder in request.claims:
        if not folder.startswith("/"):
            raise UserError(f"--claim {claim}:{folder}: an absolute folder is needed")
    kubernetes.check(space, store, request)
    text, name = kubernetes.manifest(space, options.space, store, request), kubernetes.job_name(space)
    if options.print:
        print(text, end="")
        return 0
    kubernetes.create(text, name, options.namespace)
    of = f" --namespace {options.namespace}" if options.namespace else ""
    at_once = kubernetes.cells_at_once(space, request)
    print(f"{space.name} is RayJob {name}: up to {at_once} {'cell trains' if at_once == 1 else 'cells train'} at once")
    print(f"  see what it prints with  kubectl{of} logs -f -l job-name={name}")
    print(f"  how far it is with       raysweep status {options.space} --store {store}")
    suspend = """'{"spec": {"suspend": true}}'"""
    print(f"  pause it with            kubectl{of} patch rayjob {name} --type merge -p {suspend}   (false: it resumes)")
    return 0


def _parts(option: str, text: str, between: str, form: str) -> tuple[str, str]:
    left, found, right = text.partition(between)
    if not (left and found and right):
        raise UserError(f"{option} {text}: the form is {form}")
    return left, right
