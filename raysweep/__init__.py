"""raysweep: controlled sweeps of language-model pretraining on a Ray cluster."""

__version__ = "0.1.0"
