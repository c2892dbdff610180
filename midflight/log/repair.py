"""Makes a damaged log usable again: keeps every frame that is whole, names the positions that are gone, sets the rest aside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from midflight.kit.errors import Damaged

from .disk import Disk, OsDisk, read_all, write_all
from .errors import unwritable_from
from .format import (
    CLOSED,
    GAP,
    SEAL,
    Epoch,
    Frame,
    Head,
    SegmentHeader,
    damaged,
    data_offset,
    frame_bytes,
    head_bytes,
    no_chain,
    no_segment,
    seed_from,
    segment_header_bytes,
    segment_name,
    segment_of_name,
)
from .ownership import Ownership
from .survey import Scanner, read_epoch, read_head, read_header, segment_names
from .verify import Bad, Named, Report, chain_before, find_salt, named_segments, verify, walk

copy_bytes = 1024 * 1024
moved = ".moved"  # how the name of a segment ends that is on its way from a wrong name to its own


def repair(folder: str | Path, progress: Callable[[int, int], None] | None = None, disk: Disk | None = None) -> tuple[Report, list[str]]:
    """Mend a log that nobody writes to; returns a new report and the originals of what was changed, in ``log/damaged``.

    Positions never change: those that are lost become a gap that readers pass over. A sound log is left as it is. Raises
    Locked while a writer runs, Damaged when nothing tells how to read the segments, Unwritable.
    """
    disk, folder = disk or OsDisk(), str(folder)
    try:
        owner = Ownership(disk, folder)
        try:
            if verify(folder, progress, disk).sound:
                return verify(folder, None, disk), []
            aside = _Repair(disk, folder, owner).run()
        finally:
            owner.release()
    except OSError as error:
        raise unwritable_from(error, folder) from error
    return verify(folder, None, disk), aside


class _Repair:
    """One repair: rewrites each segment that is not whole, after its original is safe in another folder."""

    def __init__(self, disk: Disk, folder: str, owner: Ownership) -> None:
        self.disk, self.folder, self.owner = disk, folder, owner
        self.aside: list[str] = []
        self.at_us = 0
        self.chain = no_chain

    def run(self) -> list[str]:
        self.epoch = self.read_epoch()
        self.rename_to_headers()
        segments = [s for s in named_segments(self.disk, self.folder) if self.epoch is None or s.first >= self.epoch.first]
        self.salt = find_salt(self.epoch, segments)
        if self.salt is None:
            raise damaged(f"{self.folder}/epoch", 0, "neither the epoch file nor any segment's header can be read")
        segments = [s if s.fits_name and s.header.salt == self.salt else s._replace(header=None) for s in segments]
        head = read_head(self.disk, self.folder)
        output: _Output | None = None
        for number, segment in enumerate(segments):
            following = segments[number + 1] if number + 1 < len(segments) else None
            until = following.first if following else head.position if head else 0
            output = self.rewrite(segment, (output.position, output.chain) if output else None, following, until)
        self.write_epoch(segments, head.position if head else 0)
        self.write_head(segments, output)
        return self.aside

    def read_epoch(self) -> Epoch | None:
        try:
            return read_epoch(self.disk, self.folder)
        except Damaged:
            self.set_aside("epoch")
            return None

    def rename_to_headers(self) -> None:
        """Give segments whose names were swapped the names that their headers say, where those are free to take."""
        wrong = [s for s in named_segments(self.disk, self.folder) if s.header is not None and not s.fits_name]
        taken = set(segment_names(self.disk, self.folder)[0]) - {s.name for s in wrong}
        for segment in wrong:
            if segment_name(segment.header.first, segment.header.epoch) not in taken:
                self.disk.rename(f"{self.folder}/{segment.name}", f"{self.folder}/{segment.name}{moved}")
        self.disk.fsync_folder(self.folder)
        for name in sorted(self.disk.listdir(self.folder)):
            if name.endswith(moved):
                self.move_back(name, taken)
        self.disk.fsync_folder(self.folder)

    def move_back(self, name: str, taken: set[str]) -> None:
        """Give a moved segment its header's name, or its old one when that is taken; also one that a cut-off repair had moved."""
        fd = self.disk.open(f"{self.folder}/{name}")
        try:
            header, _ = read_header(self.disk, fd, name)
        finally:
            self.disk.close(fd)
        right = segment_name(header.first, header.epoch) if header else name.removesuffix(moved)
        if right in taken:
            right = name.removesuffix(moved)
        taken.add(right)
        self.disk.rename(f"{self.folder}/{name}", f"{self.folder}/{right}")

    def set_aside(self, name: str) -> None:
        """Copy a file to ``damaged/`` and make the copy durable."""
        self.disk.make_folder(f"{self.folder}/damaged")
        taken = set(self.disk.listdir(f"{self.folder}/damaged"))
        number = next(n for n in range(1, len(taken) + 2) if f"{name}.{n}" not in taken)
        path = f"{self.folder}/damaged/{name}.{number}"
        source, target = self.disk.open(f"{self.folder}/{name}"), self.disk.open(path, write=True, create=True, exclusive=True)
        try:
            offset = 0
            while part := read_all(self.disk, source, copy_bytes, offset):
                write_all(self.disk, target, part, offset)
                offset += len(part)
            self.disk.fsync(target)
            self.disk.fsync_folder(f"{self.folder}/damaged")
        finally:
            self.disk.close(source)
            self.disk.close(target)
        self.aside.append(path)

    def rewrite(self, segment: Named, end: tuple[int, bytes] | None, following: Named | None, until: int) -> _Output:
        """Write a segment again with all frames that are whole, gaps for what is lost, and a seal; replace it if that differs.

        ``until`` is the position it has to reach: a segment that is missing behind it becomes a gap at its end.
        """
        chain = segment.header.chain if segment.header is not None else chain_before(end, segment)
        fd = self.disk.open(f"{self.folder}/{segment.name}")
        new_path = self.owner.unfinished("repaired")
        new = self.disk.open(new_path, write=True, create=True, exclusive=True)
        try:
            scanner = Scanner(self.disk, fd, seed_from(self.salt))
            output = _Output(self.disk, new, seed_from(self.salt), segment, chain, self.at_us)
            changed = self.copy(scanner, output, segment.first, chain, following.first if following else None)
            next_chain = following.header.chain if following and following.header else None
            if output.position < until or (next_chain is not None and output.chain != next_chain):
                output.gap(until, next_chain or no_chain)
                changed = True
            output.finish(segment, self.salt, 0 if following else CLOSED)
            self.disk.fsync(new)
        finally:
            self.disk.close(fd)
            self.disk.close(new)
        self.at_us = output.at_us
        if changed or (following is None and self.promised) or segment.header is None or not segment.whole:
            self.set_aside(segment.name)
            self.disk.rename(new_path, f"{self.folder}/{segment.name}")
            self.disk.fsync_folder(self.folder)
        else:
            self.disk.unlink(new_path)
        return output

    def copy(self, scanner: Scanner, output: _Output, first: int, chain: bytes | None, bound: int | None) -> bool:
        """Copy whole frames and put gaps where there are none; returns whether there was any such place."""
        self.promised = changed = False
        for item in walk(scanner, first, chain, bound):
            if isinstance(item, Bad):
                if item.resumes is not None:
                    output.gap(item.resumes.first, item.resumes.chain)
                    changed = True
                continue
            if item.kind == SEAL:
                self.promised = not item.flags
            else:
                output.frame(item, read_all(self.disk, scanner.fd, item.size, item.offset))
        return changed

    def write_epoch(self, segments: list[Named], durable: int) -> None:
        """Write the epoch file anew. Where no segment is left, the log goes on behind what was durable."""
        first = segments[0].first if segments else max(durable, self.epoch.first if self.epoch else 0)
        last = segments[-1].first if segments else no_segment
        highest = max([self.epoch.epoch if self.epoch else 0, *(segment_of_name(s.name)[1] for s in segments)])
        self.owner.write_epoch(Epoch(highest + 1, first, last, self.salt))

    def write_head(self, segments: list[Named], output: _Output | None) -> None:
        """Tell readers where the log ends now: offsets may have moved."""
        if output is None:
            if "head" in self.disk.listdir(self.folder):
                self.disk.unlink(f"{self.folder}/head")
            return
        first, epoch = segment_of_name(segments[-1].name)
        fd = self.disk.open(f"{self.folder}/head", write=True, create=True)
        try:
            write_all(self.disk, fd, head_bytes(Head(output.position, first, epoch, output.end_offset)), 0)
            self.disk.fsync(fd)
        finally:
            self.disk.close(fd)


class _Output:
    """A segment being written again."""

    def __init__(self, disk: Disk, fd: int, seed: int, segment: Named, chain: bytes | None, at_us: int) -> None:
        self.disk, self.fd, self.seed = disk, fd, seed
        self.position, self.end_offset = segment.first, data_offset
        self.at_us = self.first_at_us = max(at_us, segment.header.at_us if segment.header else 0)
        # None until the first frame tells what it follows.
        self.first_chain = chain
        self.chain = chain or no_chain

    def put(self, data: bytes, chain: bytes) -> None:
        if self.first_chain is None:
            self.first_chain = chain
        write_all(self.disk, self.fd, data, self.end_offset)
        self.end_offset += len(data)

    def frame(self, frame: Frame, data: bytes) -> None:
        """Copy a frame as it stands; the bytes are those that its check was made of."""
        self.put(data, frame.chain)
        self.position, self.chain, self.at_us = frame.end, frame.next_chain, max(self.at_us, frame.at_us)

    def gap(self, until: int, chain: bytes) -> None:
        """Say that the positions up to ``until`` are lost; ``chain`` is what the next frame carries, zeros when there is none yet."""
        count, first = until - self.position, self.position
        data = frame_bytes(self.seed, GAP, chain, count=count, first=first, epoch=0, at_us=self.at_us, chain=self.chain)
        self.put(data, self.chain)
        self.position, self.chain = until, chain if chain != no_chain else data[:16]

    def finish(self, segment: Named, salt: bytes, flags: int) -> None:
        """Write the seal, and the header now that it is known what the first frame follows."""
        position, epoch = segment_of_name(segment.name)
        seal = frame_bytes(self.seed, SEAL, b"", count=0, first=self.position, epoch=epoch, at_us=self.at_us, chain=self.chain, flags=flags)
        write_all(self.disk, self.fd, seal, self.end_offset)
        header = SegmentHeader(position, epoch, self.first_at_us, salt, self.first_chain or no_chain)
        write_all(self.disk, self.fd, segment_header_bytes(header), 0)
