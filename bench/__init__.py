"""Measurements of this machine: `make bench` runs them all and writes bench/results.json and docs/performance.md."""
