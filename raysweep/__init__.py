"""Controlled sweeps of language-model pretraining on a Ray cluster.

    import raysweep

    space = raysweep.load("search_spaces/demo.yaml")
    result = raysweep.run(space, "runs/demo", on_event=print)
    result.complete, result.failed, result.table

Each name is imported when it is first used: `import raysweep` takes no time, and Ray comes after its environment is set.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raysweep.version import __version__

if TYPE_CHECKING:
    from raysweep.analysis.analyze import AnalysisSummary, analyze
    from raysweep.errors import StoreError, UserError
    from raysweep.exchange.export import export
    from raysweep.exchange.pretrained import geometry
    from raysweep.space.cell import Cell
    from raysweep.space.corpus import Corpus
    from raysweep.space.measure import Measurement
    from raysweep.space.read import load
    from raysweep.space.space import Space
    from raysweep.store.results import results
    from raysweep.sweep.cost import plan
    from raysweep.sweep.events import Event
    from raysweep.sweep.measure import measure
    from raysweep.sweep.runner import SweepResult, evaluate, run
    from raysweep.sweep.state import RunState
    from raysweep.sweep.survey import Survey, status

_HOMES = {
    "AnalysisSummary": "raysweep.analysis.analyze",
    "Cell": "raysweep.space.cell",
    "Corpus": "raysweep.space.corpus",
    "Event": "raysweep.sweep.events",
    "Measurement": "raysweep.space.measure",
    "RunState": "raysweep.sweep.state",
    "Space": "raysweep.space.space",
    "StoreError": "raysweep.errors",
    "Survey": "raysweep.sweep.survey",
    "SweepResult": "raysweep.sweep.runner",
    "UserError": "raysweep.errors",
    "analyze": "raysweep.analysis.analyze",
    "evaluate": "raysweep.sweep.runner",
    "export": "raysweep.exchange.export",
    "geometry": "raysweep.exchange.pretrained",
    "load": "raysweep.space.read",
    "measure": "raysweep.sweep.measure",
    "plan": "raysweep.sweep.cost",
    "results": "raysweep.store.results",
    "run": "raysweep.sweep.runner",
    "status": "raysweep.sweep.survey",
}

__all__ = [
    "AnalysisSummary",
    "Cell",
    "Corpus",
    "Event",
    "Measurement",
    "RunState",
    "Space",
    "StoreError",
    "Survey",
    "SweepResult",
    "UserError",
    "__version__",
    "analyze",
    "evaluate",
    "export",
    "geometry",
    "load",
    "measure",
    "plan",
    "results",
    "run",
    "status",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raysweep' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
