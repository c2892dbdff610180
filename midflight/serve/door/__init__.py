"""The door: HTTP in, durable records out, 200 only then. ``run_door(config)`` is the process, ``start_door(config)`` one in a test."""

from .door import Door, start_door
from .process import run_door

__all__ = ["Door", "run_door", "start_door"]
