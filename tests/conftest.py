"""What the tests share: one small corpus of real text."""

import os

import pytest
import torch
from tiny import TINY

from raysweep.corpora import Corpus
from raysweep.corpora.loader import TokenizedCorpus, open_corpus

# Results to the last bit are promised for one number of threads.
torch.set_num_threads(1)
os.environ.pop("RAYSWEEP_STORE", None)


@pytest.fixture(scope="session")
def corpus() -> TokenizedCorpus:
    """Two percent of the installed text, in the machine's own cache: built by the first test run on a machine."""
    return open_corpus(Corpus(**TINY))
