"""The durable log: records in order, on disk before they are acknowledged, read from any position."""

from .errors import Full, NotKept, TooLarge, Unreadable, Unwritable
from .group import GroupCommit, Overloaded, Stored, call_each
from .reader import Reader
from .record import RECORD_KINDS, Record
from .writer import Writer

__all__ = [
    "RECORD_KINDS",
    "Full",
    "GroupCommit",
    "NotKept",
    "Overloaded",
    "Reader",
    "Record",
    "Stored",
    "TooLarge",
    "Unreadable",
    "Unwritable",
    "Writer",
    "call_each",
]
