"""Prometheus metrics of an installation: the catalogue, the exporter, and one file for each part that is read.

Prefect's part is flows/stack/metrics.py, which also joins all parts: the exporter reads what a part hands to it.
"""
