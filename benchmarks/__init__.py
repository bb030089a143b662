"""Measurements of speed, and searches whose results the package uses; each prints its table and records it in `results/`."""
