"""A build whose door answers 200 and only then hands the record to the log."""

from __future__ import annotations


def apply() -> None:
    """Answer at once and append a moment later, so that the answer is surely out when the process dies."""
    from midflight.log import Stored
    from midflight.serve.door.door import Door

    def submit(self, records, storing) -> None:
        storing(Stored(0, len(records)))
        self.loop.call_later(0.05, self.commit.submit, records, lambda outcome: None)

    stored_well = Door.submit
    Door.submit = lambda self, records, storing: (submit if hasattr(storing, "exchange") else stored_well)(self, records, storing)
