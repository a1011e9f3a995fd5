"""The OLMo, its loss, its kernels, its geometry, and what acts on it."""
