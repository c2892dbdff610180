"""Writes the reference of all metrics: ``python -m midflight.metrics > docs/metrics.md``."""

import sys

from .metric import markdown

sys.stdout.write(markdown())
