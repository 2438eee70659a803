"""Measurements that a reader can run; each prints a table, and one JSON object on the last line with `--json`."""
