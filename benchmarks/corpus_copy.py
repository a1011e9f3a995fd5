"""How fast a node gets a corpus out of a bucket: against one file at a time, and pyarrow's own copy of a folder.

The bucket is an S3 server on this machine behind a proxy that gives each connection 2 MB/s, since a real one limits each,
too. The corpus has 64 files of 256 KiB. Each contestant also reads every file again for its checksum.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import boto3
import numpy as np
import pyarrow.fs as pafs
from moto.server import ThreadedMotoServer

from benchmarks.harness import arguments, in_turn, ratios, show
from raysweep.corpora import manifest, shared
from raysweep.corpora.tokenized import TokenizedCorpus
from raysweep.corpora.tokenizer import train_bpe
from raysweep.space.corpus import Corpus
from raysweep.store import Store

FILES, TOKENS = 64, 131_072
RATE, PIECE = 2_000_000, 65_536

OURS, ONE_BY_ONE, PYARROW = "raysweep", "one at a time", "pyarrow"


def pour(source: socket.socket, sink: socket.socket) -> None:
    """Pass on what a connection sends, at RATE."""
    try:
        while content := source.recv(PIECE):
            time.sleep(len(content) / RATE)
            sink.sendall(content)
    except OSError:
        pass
    finally:
        sink.close()


def slow(port: int) -> int:
    """The port of a proxy to another port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            client, _ = listening.accept()
            server = socket.create_connection(("127.0.0.1", port))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pour, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listening.getsockname()[1])


def corpus_in(folder: Path) -> TokenizedCorpus:
    """A corpus of noise."""
    shard = "pretraining/train"
    (folder / shard).mkdir(parents=True)
    files = []
    for number, tokens in enumerate(np.random.default_rng(0).integers(0, 300, (FILES, TOKENS), dtype=np.uint16)):
        name = f"{shard}/{number}.bin"
        tokens.tofile(folder / name)
        files.append({"file": name, "tokens": TOKENS, "sha256": hashlib.sha256(tokens.tobytes()).hexdigest()})
    train_bpe(["a few words"], 300).save(str(folder / "tokenizer.json"))
    whole = {"dtype": "uint16", "tokens": FILES * TOKENS, "sha256": "of no matter", "files": files}
    manifest.finish({"shards": {shard: whole}}, folder)
    return TokenizedCorpus(folder)


def main() -> int:
    options = arguments(__doc__ or "", rounds=5).parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_EC2_METADATA_DISABLED": "true"}
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="sweeps")
    store = Store(f"s3://sweeps/store?endpoint_override={host}:{slow(port)}&scheme=http&region=us-east-1")
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_in(Path(folder) / "corpus")
        shared.upload(corpus, store, lambda progress: None)
        os.environ["RAYSWEEP_CACHE"] = f"{folder}/cache"
        at_once = shared.AT_ONCE

        def ours(files: int) -> None:
            shared.AT_ONCE = files
            shutil.rmtree(f"{folder}/cache", ignore_errors=True)
            shared.obtain(Corpus(name="installed"), corpus.fingerprint, store)

        def pyarrow() -> None:
            shutil.rmtree(f"{folder}/copied", ignore_errors=True)
            source = f"{store.root}/{shared.directory(corpus.fingerprint)}"
            pafs.copy_files(source, f"{folder}/copied", store.fs, pafs.LocalFileSystem())
            TokenizedCorpus(Path(folder) / "copied")

        costs = in_turn({OURS: lambda: ours(at_once), ONE_BY_ONE: lambda: ours(1), PYARROW: pyarrow}, options.rounds)
    show(ratios("64 files", OURS, costs, "times as fast"), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
