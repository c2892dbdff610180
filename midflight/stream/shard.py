"""A shard owns the recipients whose key hashes to it: apply, advance, snapshot, load; no files, threads or clocks."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

from . import fold as folding
from . import seen as seeing
from . import watching
from .alive import is_answer
from .batch import Batch
from .ordered import new_table
from .program import Program, atoms_before, compiled
from .tables import (
    NEVER,
    NIL,
    RECIPIENTS,
    Cells,
    State,
    find_recipient,
    grown,
    in_minutes,
    in_seconds,
    made_ready,
    new_cells,
    new_state,
    reindex,
    sized,
    with_room,
)

VERSION = 7
told_min = 4096


class Effects(NamedTuple):
    """What applying a batch changed outside of the shard; small, and merging in any order."""

    cell_key: np.ndarray  # uint64 [n, 3]
    cell_value: np.ndarray  # int64 [n, measures]: what to add
    delay_key: np.ndarray  # uint64 [n, 4]
    delay_n: np.ndarray  # int64
    recent_key: np.ndarray  # the same once more for what happened of late, by second instead of minute
    recent_value: np.ndarray
    recent_delay_key: np.ndarray
    recent_delay_n: np.ndarray
    duplicates: np.ndarray  # int64, rows of the batch that were repetitions
    conflicts: np.ndarray  # int64, rows whose id was known with other content
    clicker_campaign: np.ndarray  # uint32, and so on: messages with a human click whose state is now this
    clicker_message: np.ndarray  # uint64
    clicker_recipient: np.ndarray  # uint64 key
    clicker_row: np.ndarray  # int64, a row of the batch about this recipient
    clicker_variant: np.ndarray
    clicker_wave: np.ndarray
    clicker_before: np.ndarray  # int64 us, when a person had first clicked before this batch; -1 = nobody had
    clicker_clicked_at: np.ndarray  # int64 us, -1 = the message has no human click any more
    clicker_converted_at: np.ndarray  # int64 us, 0 = not converted
    new_person: np.ndarray  # int32, numbers of recipients who are new here
    new_row: np.ndarray  # int64, a row of the batch about each
    told: np.ndarray  # watching.TOLD, in log order: who entered and left segments, and what rules waited for; rows of the whole batch
    answered: np.ndarray  # int64, rows of the batch that are new deliveries and bounces, in log order
    answered_alive: np.ndarray  # uint32, the minute since 1970 in which the person of each was last known to be there before it, or 0


class Shard:
    """State of some recipients."""

    def __init__(self, click_window_us: int, dedup_days: int) -> None:
        self.click_window_us = click_window_us
        self.dedup_days = dedup_days
        self.log_time_us = 0
        self.state: State = new_state()
        self.known = watching.new_known()
        self.ask(compiled({}, [], lambda kind, name: 0))
        self._told = np.zeros(told_min, watching.TOLD)

    def ask(self, program: Program) -> None:
        """Go on with a program that this state stands at, as after `read`."""
        self.program, self._scratch = program, watching.new_scratch(program)

    # -- the four verbs --------------------------------------------------------------------------------------------------

    def apply(self, batch: Batch, log_time_us: int, recent_from_us: int = NEVER) -> Effects:
        """Fold a batch. Its rows keep the log's order; everything else about its size or cut does not matter.

        What happened from ``recent_from_us`` on also comes by the second. For those numbers to add up, nothing that happened so late may
        have been folded before this time was given.
        """
        rows = batch.kind.size
        self.log_time_us = max(self.log_time_us, log_time_us)
        self.state = with_room(self.state, rows, int(np.count_nonzero(batch.traits)) * 7, self._oldest_day())
        state = self.state
        result = np.empty(rows, np.uint8)
        seeing.seen_before(state.seen, state.used, batch.id_hi, batch.id_lo, batch.content, batch.rcpt, batch.day, self.dedup_days, result)
        recipient = np.full(rows, NIL, np.int32)
        people = int(state.used[RECIPIENTS])
        folding.find_recipients(state.recipient_slots, state.recipients, state.used, batch.rcpt, batch.provider, result, recipient)
        message = np.empty(rows, np.int32)
        folding.find_messages(state, batch.msg, batch.source, batch.kind, result, recipient, message)
        cells = new_cells(recent_from_us)
        alive = np.zeros(rows, np.uint32)
        row = 0
        while (row := self._fold(cells, batch, result, recipient, message, alive, row)) < rows:
            if row < 0:
                row = ~row
                self._more_room()
            else:
                cells = grown(cells)
        self._let_pass(self.log_time_us)
        new = np.flatnonzero(recipient >= people)
        new_person, first = np.unique(recipient[new], return_index=True)
        answered = np.flatnonzero((result == seeing.FOLDED) & is_answer[batch.kind])
        return self._effects(batch, result, cells, new_person, batch.row[new[first]], answered, alive)

    def _fold(
        self, cells, batch: Batch, result: np.ndarray, recipient: np.ndarray, message: np.ndarray, alive: np.ndarray, row: int
    ) -> int:
        return folding.fold(
            cells, self.state, self.known, self.program, self._told, self._scratch, batch, result, recipient, message, alive,
            self.click_window_us, row,
        )  # fmt: skip

    def advance(self, log_time_us: int) -> np.ndarray:
        """Let log time pass, which never goes back; return what that told."""
        self.log_time_us = max(self.log_time_us, log_time_us)
        self._let_pass(self.log_time_us)
        return self._taken()

    def define(self, program: Program, segments: np.ndarray, watches: np.ndarray) -> np.ndarray:
        """Go on with other definitions; return who is in the new segments by what is known of them, and who is no longer.

        ``segments`` and ``watches`` give for each of the new program's the number that the same one had before, or -1 for one that is new
        or has changed. What is the same goes on as if nothing had happened.
        """
        people = int(self.state.used[RECIPIENTS])
        atoms = atoms_before(self.program, program)
        self.known = watching.redefined(self.known, people, segments, atoms, watches)
        self.ask(program)
        used = self.known.used
        if not used[watching.ON]:
            # Time has passed without anybody looking: all segments are new, and nobody waits any more.
            self.known.persons["due"][:people] = 0
            self.known.wheels[:] = 0
            watching.rebuild_wheels(self.known, people)
            used[watching.TICK], used[watching.PASSED_US] = self.log_time_us // watching.TICK_US, self.log_time_us
        used[watching.ON] = program.segments + program.watches.size
        new_atoms, new_segments = (np.flatnonzero(was < 0).astype(np.int32) for was in (atoms, segments))
        first = 0
        while new_segments.size and (first := self._fill(new_atoms, new_segments, first, people)) < people:
            self._more_room()
        return self._taken()

    def _fill(self, atoms: np.ndarray, segments: np.ndarray, first: int, people: int) -> int:
        return watching.fill(
            self.program, self.state, self.known, self._told, atoms, segments, first, people, self.log_time_us, self._scratch
        )

    def _let_pass(self, to_us: int) -> None:
        if not self.known.used[watching.ON]:
            return
        while not watching.pass_time(self.program, self.state, self.known, self._told, to_us, self._scratch):
            self._more_room()

    def _more_room(self) -> None:
        grown = np.zeros(self._told.size * 2, watching.TOLD)
        grown[: self._told.size] = self._told
        self._told = grown

    def _taken(self) -> np.ndarray:
        told = self._told[: self.known.used[watching.TOLDS]].copy()
        self.known.used[watching.TOLDS] = 0
        return told

    def snapshot(self) -> bytes:
        """Return the state as bytes for `load`."""
        out = io.BytesIO()
        self.write(out)
        return out.getvalue()

    def load(self, raw: bytes) -> None:
        """Take over a state that `snapshot` gave."""
        self.read(io.BytesIO(raw))

    # -- memory in advance ----------------------------------------------------------------------------------------------------

    def make_ready(self, messages: int) -> None:
        """Take the memory for that many messages now, and not while they come."""
        self.state = made_ready(self.state, messages, self._oldest_day())

    # -- the same through a file, without a copy in memory ------------------------------------------------------------------

    def write(self, out) -> None:
        """Write the rows in use of every table to a binary file."""
        header = [VERSION, self.log_time_us, *self.state.seen.layout.tolist(), *self.state.used.tolist()]
        out.write(np.array(header, np.int64).tobytes())
        out.write(memoryview(self.state.seen.filled).cast("B"))
        for table, used in self._tables():
            out.write(memoryview(table[:used].view(np.uint8)))
        watching.write(self.known, int(self.state.used[RECIPIENTS]), out)

    def read(self, source) -> None:
        """Read what `write` wrote; the hash tables are built anew."""
        header = np.frombuffer(source.read(11 * 8), np.int64)
        if header.size != 11 or header[0] != VERSION:
            raise ValueError(f"snapshot version {header[:1]}, expected {VERSION}")
        self.log_time_us = int(header[1])
        seen = new_table(seeing.words, int(header[2]))
        seen.layout[:] = header[2:5]
        self.state = sized(seen, header[5:].copy())
        source.readinto(memoryview(self.state.seen.filled).cast("B"))
        for table, used in self._tables():
            if used and source.readinto(memoryview(table[:used].view(np.uint8))) != used * table.itemsize:
                raise ValueError("snapshot is cut short")
        reindex(self.state)
        self.known = watching.read(source, int(self.state.used[RECIPIENTS]))

    def _oldest_day(self) -> int:
        """Return the earliest day whose event ids have to be known."""
        return self.log_time_us // folding.DAY_US - self.dedup_days

    def _tables(self):
        """Yield (rows, how many are in use) of every table that is stored, in a fixed order."""
        state = self.state
        for number, table in enumerate((state.recipients, state.messages, state.nodes, state.conversions, state.traits), start=RECIPIENTS):
            yield table, int(state.used[number])

    def row_of(self, key: int) -> int:
        """Return the row of the recipient with this key, or -1."""
        return int(find_recipient(self.state.recipient_slots, self.state.recipients, np.uint64(key)))

    def members(self, segment: int) -> np.ndarray:
        """Return the rows of the people in a segment, by its number."""
        bits = self.known.bits[: int(self.state.used[RECIPIENTS]), segment >> 6]
        return np.flatnonzero(bits >> np.uint64(segment & 63) & np.uint64(1)).astype(np.int32)

    # -- for tests and the console -------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return how many rows of each table are in use, their bytes and those of the hash tables, and the bytes of what segments and rules
        keep."""
        state = self.state
        names = ("seen", "recipients", "messages", "nodes", "conversions", "traits")
        out = {name: int(n) for name, n in zip(names, state.used, strict=True)}
        out["bytes"] = sum(table.filled.nbytes for table in (state.seen, state.recipient_slots, state.message_slots))
        out["bytes"] += sum(used * table.itemsize for table, used in self._tables())
        out["asked_bytes"] = watching.used_bytes(self.known, out["recipients"])
        return out

    def _effects(
        self, batch: Batch, result: np.ndarray, cells: Cells, new_person: np.ndarray, new_row: np.ndarray, answered: np.ndarray,
        alive: np.ndarray,
    ) -> Effects:  # fmt: skip
        used, delays = int(cells.used[0]), int(cells.used[1])
        changed = np.flatnonzero(cells.value[:used].any(axis=1))
        moved = np.flatnonzero(cells.delay_n[:delays])
        key, value = cells.key[changed], cells.value[changed]
        delay_key, delay_n = cells.delay_key[moved], cells.delay_n[moved]
        recent, recent_delays = in_seconds(key), in_seconds(delay_key)
        touched, first = np.unique(cells.touched[: cells.used[2]], return_index=True)
        row, before = cells.touched_row[first], cells.touched_before[first]
        clicked_at, converted_at = np.empty(touched.size, np.int64), np.empty(touched.size, np.int64)
        folding.clickers(self.state, touched, self.click_window_us, clicked_at, converted_at)
        people = (before >= 0) | (clicked_at >= 0)
        touched, row, before, clicked_at, converted_at = (column[people] for column in (touched, row, before, clicked_at, converted_at))
        messages = self.state.messages
        recipients = self.state.recipients["key"][messages["recipient"][touched]]
        return Effects(
            *in_minutes(key, value),
            *in_minutes(delay_key, delay_n),
            key[recent],
            value[recent],
            delay_key[recent_delays],
            delay_n[recent_delays],
            batch.row[result == seeing.DUPLICATE],
            batch.row[result == seeing.CONFLICT],
            messages["campaign"][touched],
            messages["key"][touched],
            recipients,
            batch.row[row],
            messages["variant"][touched],
            messages["wave"][touched],
            before,
            clicked_at,
            converted_at,
            new_person,
            new_row,
            self._told_of(batch),
            batch.row[answered],
            alive[answered],
        )

    def _told_of(self, batch: Batch) -> np.ndarray:
        told = self._taken()
        of_row = told["row"] >= 0
        told["row"][of_row] = batch.row[told["row"][of_row]]
        return told
