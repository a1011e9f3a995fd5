"""raysweep: controlled sweeps of language-model pretraining on a Ray cluster."""
