"""A simulated sweep of 108 cells, written to a store and read back as any sweep is."""

from pathlib import Path

import pandas as pd
import pytest

from raysweep.analysis import example, regressions
from raysweep.analysis import sweep_data as sweep
from raysweep.space.space import Space
from raysweep.store import Store


@pytest.fixture(scope="session")
def simulated(example_folder: Path) -> sweep.SweepData:
    space: Space = example.space()
    return sweep.load(Store(str(example_folder / "store")), space)


@pytest.fixture(scope="session")
def tables_of_example(simulated: sweep.SweepData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Its regressions and scaling laws, from few resamples."""
    return regressions.regressions(simulated, draws=200)
