"""Who may wait and who is next: bytes that wait are bounded, and every source gets its share of them and of the work."""

from __future__ import annotations

from collections import deque

quantum_bytes = 64 * 1024  # what one lane may have done before the next lane's turn
request_cost_bytes = 4 * 1024  # the work of a request whatever its size
request_bytes = 1024  # what an empty request weighs in memory


class Waiting:
    """Bytes received and not yet stored or refused, in total and by lane (a lane is one source).

    A lane holds at most half of all; with more lanes waiting, at most its equal share. So one that floods leaves room for the others.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.total = 0
        self.by_lane: dict[str, int] = {}

    def take(self, lane: str, count: int) -> bool:
        """Count bytes in; False, and nothing counted, when there is no room for them."""
        held = self.by_lane.get(lane, 0)
        lanes = len(self.by_lane) + (held == 0)
        if self.total + count > self.bytes_max or held + count > self.bytes_max // max(2, lanes):
            return False
        self.by_lane[lane] = held + count
        self.total += count
        return True

    def give_back(self, lane: str, count: int) -> None:
        if not count:
            return
        self.total -= count
        held = self.by_lane[lane] - count
        assert held >= 0 and self.total >= 0
        if held:
            self.by_lane[lane] = held
        else:
            del self.by_lane[lane]


class FairQueue:
    """Requests by lane, taken in turn: deficit round robin over their cost, so that a lane's share does not depend on its demand."""

    def __init__(self) -> None:
        self.lanes: dict[str, deque] = {}
        self.turns: deque[str] = deque()
        self.credit: dict[str, int] = {}
        self.length = 0

    def push(self, lane: str, item: object, cost: int) -> None:
        waiting = self.lanes.get(lane)
        if waiting is None:
            waiting = self.lanes[lane] = deque()
            self.turns.append(lane)
            self.credit[lane] = quantum_bytes
        waiting.append((cost + request_cost_bytes, item))
        self.length += 1

    def pop(self) -> object:
        """Return the next request in turn. Raises IndexError when none waits."""
        while True:
            lane = self.turns[0]
            waiting = self.lanes[lane]
            cost = waiting[0][0]
            if cost > self.credit[lane]:
                self.credit[lane] += quantum_bytes
                self.turns.rotate(-1)
                continue
            self.credit[lane] -= cost
            self.length -= 1
            _, item = waiting.popleft()
            if not waiting:
                del self.lanes[lane], self.credit[lane]
                self.turns.popleft()
            return item
