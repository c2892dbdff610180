"""What a cell counts: additive measures of one minute and one combination of dimensions, and the delay buckets."""

from __future__ import annotations

# The order is the column order of cells and is stored: append, never reorder.
# Counted once per message, in the minute of its first such event: sent .. subscribed without an -s; `opens`, `clicks` count all.
# `_human` counts what people did (proxied opens are people's: the proxy fetched because somebody looked).
MEASURES = (
    "queued",
    "sent",
    "delivered",
    "deferred",
    "bounced_hard",
    "bounced_soft",
    "bounced_block",
    "rejected",
    "failed",
    "opened",
    "opened_human",
    "opens",
    "opens_human",
    "opens_proxied",
    "clicked",
    "clicked_human",
    "clicks",
    "clicks_human",
    "complained",
    "unsubscribed",
    "subscribed",
    "autoresponded",
    "converted",
    "conversions",
    "revenue_micros",
    "site",
    "unknown",
)
MEASURE = {name: index for index, name in enumerate(MEASURES)}

DIMENSIONS = ("campaign", "variant", "wave", "provider", "source")

# Upper edges of delay buckets in seconds; bucket i holds delays from edge i-1 (or 0) up to below edge i, the last the rest.
DELAY_EDGES_S = (
    1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 450, 600, 900, 1200, 1800, 2700, 3600, 5400, 7200, 10800, 14400, 21600,
    28800, 43200, 64800, 86400, 129600, 172800, 259200, 345600, 604800,
)  # fmt: skip
# open, click: from delivery (or sending, where no delivery is known) to a person's first open or click. conversion: from a
# person's click to the first conversion that is attributed to it.
DELAYS = ("open", "click", "conversion")

# Edges in milliseconds for freshness: receipt of a request to its number being readable.
FRESHNESS_EDGES_MS = (5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 1500, 2000, 3000, 5000, 10000, 30000, 60000)
