"""What the tests share: one small corpus of real text, one simulated sweep."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from tiny import TINY

from raysweep.analysis import example
from raysweep.corpora.build import open_corpus
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.space.corpus import Corpus

# Results to the last bit are promised for one number of threads.
torch.set_num_threads(1)
os.environ.pop("RAYSWEEP_STORE", None)


@pytest.fixture(scope="session")
def corpus() -> TokenizedCorpus:
    """Two percent of the installed text, in the machine's own cache: built by the first test run on a machine."""
    return open_corpus(Corpus(**TINY))


@pytest.fixture(scope="session")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`simulated.yaml` and `store`."""
    folder = tmp_path_factory.mktemp("example")
    example.write(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, by playwright."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: `apt install chromium`")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=quiet)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[Any, str]]:
    """A client of an S3 server on localhost, and the URI of a store there."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="sweeps")
        yield client, f"s3://sweeps/store?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()
