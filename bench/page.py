"""Makes docs/performance.md of the results: tables, plain charts, and a statement of what was measured on what."""

from __future__ import annotations

from collections.abc import Callable, Iterator

# What a full run leaves in bench/results.json, at least.
REQUIRED = {
    "door_requests_per_s": float, "door_p99_ms": float, "e2e_events_per_s": float, "e2e_keeps_up_events_per_s": float,
    "replay_events_per_s_core": float, "replay_events_per_s_core_mixed": float, "freshness_p50_ms": float, "freshness_p99_ms": float,
    "growth": list, "growth_ratio_10m_to_100k": float, "bytes_per_recipient": float, "bytes_per_message": float, "restart_s": float,
    "restart_door_s": float, "action_p99_ms": float, "segment_bytes_per_recipient": float, "replay_with_rules_ratio": float,
    "backtest_events_per_s": float, "peer_ratios": dict, "peers": dict, "machine": dict, "measured": dict, "quick": bool,
}  # fmt: skip
NAMES = {"bytewax": "Bytewax", "pathway": "Pathway", "flink": "Flink SQL", "duckdb": "DuckDB"}
bar_width = 40


def wrong(results: dict) -> list[str]:
    """Return what is missing from results, or of another type than it has to be."""
    found = [f"`{key}` is missing" for key in REQUIRED if key not in results]
    for key, kind in REQUIRED.items():
        allowed = (int, float) if kind is float else kind
        if key in results and (not isinstance(results[key], allowed) or (kind is float and isinstance(results[key], bool))):
            found.append(f"`{key}` is {type(results[key]).__name__}, expected {kind.__name__}")
    return found


def page(results: dict) -> str:
    """Return the page of a full run. Raises ValueError for results that are not one."""
    missing = wrong(results)
    if missing or results["quick"]:
        raise ValueError("; ".join(missing) or "these are the results of a quick run, which mean nothing")
    return "\n\n".join(part(results) for part in PARTS) + "\n"


def lines_of(found: dict) -> Iterator[str]:
    """Yield a measure's plain figures as lines for the terminal."""
    for key, value in found.items():
        if isinstance(value, int | float):
            yield f"  {key} {number(value)}"
        elif isinstance(value, dict) and value and all(isinstance(v, int | float) for v in value.values()):
            yield f"  {key} " + ", ".join(f"{name} {number(v)}" for name, v in value.items())


# -- forms -----------------------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return a figure with as many digits as it deserves: 123,000, 12.3, 0.12."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def size(value: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if abs(value) < 1000:
            return f"{number(value)} {unit}"
        value /= 1000.0
    return f"{number(value)} GB"


def table(names: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [names, tuple("---" if place == 0 else "---:" for place in range(len(names))), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines)


def chart(rows: list[tuple[str, float, str]]) -> str:
    """Return bars, the longest as wide as there is room: (label, value, what stands behind the bar)."""
    most = max((value for _, value, _ in rows), default=1.0) or 1.0
    wide = max(len(label) for label, _, _ in rows)
    bars = [f"{label:>{wide}}  {'█' * max(1, round(bar_width * value / most))} {said}" for label, value, said in rows]
    return "```text\n" + "\n".join(bars) + "\n```"


# -- parts -----------------------------------------------------------------------------------------------------------------------


def head(results: dict) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    write_ms = number(machine["durable_write_ms"])
    return f"""# Performance

`make bench` measures the machine it runs on, writes `bench/results.json` and makes this page of it. Nothing here is typed by hand. Figures
are those of one machine: run it on yours.

Measured {machine["date"]} on {machine["processor"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB, {machine["system"]},
Python {machine["python"]} ({versions}). A write of 4 KB until it is on disk took
{write_ms} ms. The load average before was {machine["load_before"]}: what else runs on a machine slows wall times much, and CPU times
a little."""


def summary(results: dict) -> str:
    rows = [
        ("Durable single-event requests a second, as answered", number(results["door_requests_per_s"])),
        ("99 of 100 of those are answered within", f"{number(results['door_p99_ms'])} ms"),
        ("Events a second over the whole way, signed HTTP to counted", number(results["e2e_events_per_s"])),
        ("Events a second at which numbers still follow within a second", number(results["e2e_keeps_up_events_per_s"])),
        ("Age of a number at 20,000 events/s, half of all requests", f"{number(results['freshness_p50_ms'])} ms"),
        ("Age of a number at 20,000 events/s, 99 of 100", f"{number(results['freshness_p99_ms'])} ms"),
        ("Events a second and core, replayed from the log (SendGrid)", number(results["replay_events_per_s_core"])),
        ("The same over five vendors' formats and a site", number(results["replay_events_per_s_core_mixed"])),
        ("Messages a second handed to a relay by SMTP, made and noted", number(results["conductor_smtp_per_s"])),
        ("The same to a vendor's API in batches", number(results["conductor_api_per_s"])),
        (f"Which variant? 99 of 100 answers at {number(results['decide_per_s'])}/s within", f"{number(results['decide_p99_ms'])} ms"),
        ("Speed at the most recipients by that at the fewest", number(results["growth_ratio_10m_to_100k"])),
        ("Memory for each recipient with a message", size(results["bytes_per_recipient"])),
        ("Memory for each further message", size(results["bytes_per_message"])),
        ("An engine that starts again has caught up after", f"{number(results['restart_s'])} s"),
        ("From an event to the action it sets off, 99 of 100", f"{number(results['action_p99_ms'])} ms"),
        ("Speed with 200 segments and 200 rules by that without", number(results["replay_with_rules_ratio"])),
        ("Memory for each recipient that these take", size(results["segment_bytes_per_recipient"])),
        ("Events a second in a backtest", number(results["backtest_events_per_s"])),
        *((f"Times the speed of {NAMES[name]} at the same job", number(ratio)) for name, ratio in results["peer_ratios"].items()),
    ]  # fmt: skip
    return "## In short\n\n" + table(("what", "measured"), rows)


def whole_way(results: dict) -> str:
    rates = [(number(r["asked_per_s"]), number(r["per_s"]), f"{r['lag_s']:.2f} s") for r in results["e2e_rates"]]
    used = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in results["e2e_cpu_s"].items())
    cores = ", ".join(f"{name} {share:.2f}" for name, share in results["freshness_cores"].items())
    return f"""## The whole way

`midflight up` with all its processes (door, engine, console, history); the sender is on the same machine and takes its share. SendGrid's
batches of 200, each signed, over HTTP. {number(results["e2e_events"])} events a run, from the first byte sent until the cells in the store
count the last event: {number(results["e2e_events_per_s"])} events/s (runs: {
        ", ".join(map(number, results["e2e_runs_per_s"]))
    }). The last event
was counted {number(results["e2e_lag_s"])} s after the last answer. CPU time of a run: {used}.

At a steady pace, how long after the last answer everything was counted:

{table(("asked, events/s", "sent, events/s", "counted after"), rates)}

The door alone: {number(results["door_requests_per_s"])} single-event requests/s over 256 connections (p50 {
        number(results["door_p50_ms"])
    } ms, p99
{number(results["door_p99_ms"])} ms), each answered when it is on disk; {
        number(results["door_batch_events_per_s"])
    } events/s in signed batches.

**Freshness** at {number(results["freshness_events_per_s"])} events/s for {
        number(results["freshness_seconds"])
    } s, from receipt to readable:

{
        table(
            ("seen by", "p50", "p99"),
            [
                ("the store's own table", f"{number(results['freshness_p50_ms'])} ms", f"{number(results['freshness_p99_ms'])} ms"),
                (
                    "a probe that sends a marked event and reads the store",
                    f"{number(results['freshness_probe_p50_ms'])} ms",
                    f"{number(results['freshness_probe_p99_ms'])} ms",
                ),
                (
                    "a probe that asks the API",
                    f"{number(results['freshness_probe_api_p50_ms'])} ms",
                    f"{number(results['freshness_probe_api_p99_ms'])} ms",
                ),
            ],
        )
    }

The table counts {number(results["freshness_requests"])} requests in buckets, the probes {
        results["freshness_probes"]
    } events. Cores in use: {cores}."""  # noqa: E501


def replay(results: dict) -> str:
    rows = [
        (
            said,
            number(results[f"replay_events{name}"]),
            number(results[f"replay_events_per_s_core{name}"]),
            number(results[f"replay_events_per_s_wall{name}"]),
        )
        for name, said in (("", "SendGrid, batches of 200"), ("_mixed", "SendGrid, SES, Postmark, Mailgun, Resend and a site"))
    ]
    return f"""## Replay

One engine process on one core folds a whole log: reading, checking and decoding it, the fold, and the store's commits. What a rebuild does.

{table(("input", "events", "by CPU time, events/s", "by wall time, events/s"), rows)}"""


def growth(results: dict) -> str:
    points = results["growth"]
    rows = [
        (
            number(p["recipients"]),
            number(p["messages"]),
            number(p["steady_events"]),
            number(p["events_per_s_core"]),
            number(p["events_per_s_wall"]),
            size(p["state_bytes"]),
            size(p["rss_bytes"]),
        )
        for p in points
    ]
    bars = [(number(p["recipients"]), p["events_per_s_core"], f"{number(p['events_per_s_core'])} events/s") for p in points]
    names = ("recipients", "messages", "events timed", "by CPU time, events/s", "by wall time, events/s", "state", "resident")
    return f"""## With ten times the people

Two mailings to everybody, at the same pace whatever their number, opens and clicks spread over the whole time. The second mailing is what
is timed: everybody is known, new messages come, and what happens is about any of them. Reports come up to 100 s late at every size. The
largest by the smallest, by CPU time: **{number(results["growth_ratio_10m_to_100k"])}**; the largest with reports up to an hour late, which
change cells of long ago: {number(results["growth_ratio_an_hour_late"])}. The engine was told how many messages to expect
(`expected_messages` in the settings) and had their memory from the start; where it takes memory as it needs it, and the system makes each
page at its first touch, the ratio is {number(results["growth_ratio_unexpected"])}.

{chart(bars)}

{table(names, rows)}"""


def memory(results: dict) -> str:
    return f"""## Memory

{
        table(
            ("for each", "state", "resident"),
            [
                (
                    "recipient, with one message and what happens to it",
                    size(results["bytes_per_recipient"]),
                    size(results["bytes_per_recipient_rss"]),
                ),
                ("further message to somebody known", size(results["bytes_per_message"]), size(results["bytes_per_message_rss"])),
            ],
        )
    }

From the largest run, as slopes over its course, because tables grow in steps. *State* is the bytes of all arrays of the shard: recipients,
messages, what happened to each, the ids of all events of the last days (for duplicates), the hash tables, and their room to grow.
*Resident* is the process's memory beyond what it had at its start: the same as far as it was touched, plus buffers and the store's cache.
A message stands for the 3.4 events that this feed has of one on average. No text of a recipient is kept."""


def restart(results: dict) -> str:
    runs = ", ".join(map(number, results["restart_runs_s"]))
    door_s, since = number(results["restart_door_s"]), number(results["restart_events_after_snapshot"])
    return f"""## Starting again

An engine over {number(results["restart_events"])} events with a snapshot of {size(results["restart_snapshot_bytes"])}, and
{since} events since has caught up {number(results["restart_s"])} s after the start
of its process (runs: {runs}). The door over the same log answers `/ready` after {door_s} s;
while an engine starts, the door takes what comes."""


def rules(results: dict) -> str:
    cores = ", ".join(f"{name} {share:.2f}" for name, share in results["action_cores"].items())
    said = {key: number(value) for key, value in results.items() if isinstance(value, int | float)}
    return f"""## Segments and rules

{said["rules_segments"]} segments and {said["rules_rules"]} rules of all kinds, about forty campaigns of which six are being sent:
{said["rules_moves_per_event"]} times an event somebody comes into a segment or leaves it,
{said["rules_firings_per_event"]} times a rule fires. The engine replays {said["replay_with_rules_events_per_s_core"]} events/s and core
with them, {said["replay_without_rules_events_per_s_core"]} without, a ratio of **{said["replay_with_rules_ratio"]}**.
At {said["segment_recipients"]} recipients they take {size(results["segment_bytes_per_recipient"])} of memory each.
A backtest reads {said["backtest_events_per_s"]} events/s.

From the first byte of an event's request to its rule's webhook at a server on the same machine, at {said["action_events_per_s"]} events/s,
one rule in four acting: half within {said["action_p50_ms"]} ms, 99 of 100 within **{said["action_p99_ms"]} ms**,
over {said["action_probes"]} probes, {said["action_lost"]} lost and {said["action_twice"]} twice; {said["action_calls_per_s"]} calls/s
in all. Cores meanwhile: {cores}."""


def peers(results: dict) -> str:
    found = results["peers"]
    there = {name: row for name, row in found.items() if "ratio" in row}
    streams = {name: row for name, row in there.items() if row["stream"]}
    rows = [
        (
            f"{NAMES[name]} {row['version']}" + ("" if row["stream"] else " (finished file, no stream)"),
            number(row["events"]),
            number(row["per_s_ours"]),
            number(row["per_s_one_core"]),
            number(row["per_s_all_cores"]),
            f"**{number(row['ratio'])}**" if row["stream"] else number(row["ratio"]),
            number(row["ratio_by_cpu"]),
            f"{size(row['rss_bytes_ours'])} / {size(row['rss_bytes_' + row['best']])}",
        )
        for name, row in there.items()
    ]
    names = ("engine", "events", "ours, one core", "theirs, one core", "theirs, all cores", "ours by theirs", "by CPU time", "memory")
    bars = [(NAMES[name], row["ratio"], f"{number(row['ratio'])} times") for name, row in streams.items()]
    cores = results["machine"]["cores"]
    missing = "".join(f"\n\n{NAMES[name]} is not in the table: it {row['left_out']}." for name, row in found.items() if "left_out" in row)
    return f"""## Beside other engines

The job: from SendGrid's JSON to a table of counts, unique opens and unique clicks for each campaign, variant and minute, events that were
sent twice counted once, and late reports put where they belong. The same events for all, and before a time counts, a run's table has to be
equal to ours, cell for cell. Events/s by wall time; ours by theirs is against the better of one core and all
{cores} cores, and ours had one. What an engine does before its first event (starting a JVM, compiling) is taken off all alike:
a small input's time is subtracted.

{chart(bars) if bars else ""}

{table(names, rows)}{missing}

What makes it comparable, and what does not:

- Ours is the production path, log to store, each step committed to disk, with providers, waves, machine opens and delays counted besides.
  The others read a file and keep the result in memory; none of them was asked to write snapshots or checkpoints.
- Bytewax: decoding with orjson, ten batches an item, state by eight parts of the messages (a key for each message would cost a call for
  each event). Python state, so a second worker gains little.
- Pathway: its Python connector with upsert keys, then its own incremental group-bys.
- Flink: SQL with its native operators, mini-batches, object reuse, heap state. Its JSON reader wants one event a line and gets the same
  events so; its changes are printed by the JVM, which is faster than to hand them to Python.
- DuckDB reads the finished file at once and keeps nothing: a yardstick of what a machine can do, and no peer."""


def method(results: dict) -> str:
    rows = [(name, f"{done['seconds']:.0f} s", done["date"], done["load_before"]) for name, done in results["measured"].items()]
    return f"""## Method

The input is made by `bench/feed.py`: deterministic, in the order of receipt, JSON as SendGrid writes it, 3.4 events a message on average
(processed, delivered, deferrals, bounces, opens with repetitions and machines, clicks), 0.6 % sent twice, 3 % late. Making it is never part
of a time. Rates by CPU time are events by the process's CPU seconds, its kernel time included, medians of several runs. One core means that
the process was pinned to one. Snapshots are off during replays, growth and comparisons.

{table(("part", "took", "when", "load before"), rows)}

`python -m bench --only NAME` measures a part again, `--page` writes this page again, and `--quick`
shows in two minutes that all of it works."""


PARTS: tuple[Callable[[dict], str], ...] = (head, summary, whole_way, replay, growth, memory, restart, rules, peers, method)
