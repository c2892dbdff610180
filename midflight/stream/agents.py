"""Who caused an open or a click: a human, a human through a proxy, or a machine; and why we think so.

The order of evidence: the vendor's flag, the user agent, the network, then (in the fold, which sees the message's other events) timing
against delivery and bursts of links. Sources of the rules: Mailgun's and Bird's documentation of Apple and Gmail prefetching, Yahoo's of
its proxy, and what scanners call themselves.
"""

from __future__ import annotations

import re
from typing import NamedTuple

HUMAN, PROXIED, MACHINE = 1, 2, 3

# Reasons, stored as their index: append, never reorder.
AGENT_REASONS = (
    "",
    "vendor flag",
    "Apple Mail privacy prefetch",
    "Gmail image proxy",
    "Gmail prefetch",
    "Yahoo image proxy",
    "scanner or bot user agent",
    "scanner network",
    "less than 2 s after delivery",
    "3 or more links within 2 s",
)
VENDOR_FLAG, APPLE, GMAIL_PROXY, GMAIL_PREFETCH, YAHOO_PROXY, SCANNER_AGENT, SCANNER_NETWORK, TOO_SOON, BURST = range(1, 10)

too_soon_us = 2_000_000
burst_us = 2_000_000
burst_urls_min = 3

_GMAIL_PREFETCH = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/42.0.2311.135 Safari/537.36 "
    "Edge/12.246 Mozilla/5.0"
)
_SCANNER = re.compile(
    r"bot\b|bot/|crawler|spider|slurp|Microsoft Office Existence Discovery|ms-office|BingPreview|barracuda|proofpoint|mimecast|SCMGUARD"
    r"|symantec|trendmicro|sophos|fortinet|ironport|urlscan|safelinks|python-requests|python-urllib|aiohttp|httpx|curl/|wget/|libwww|okhttp"
    r"|Go-http-client|Java/|HeadlessChrome|PhantomJS|facebookexternalhit|WhatsApp/|Slackbot|node-fetch|axios/",
    re.IGNORECASE,
)
# Barracuda's documented ranges 209.222.80.0/21 and 64.235.144.0/20.
_SCANNER_NETWORKS = tuple(f"209.222.{n}." for n in range(80, 88)) + tuple(f"64.235.{n}." for n in range(144, 160))

_SCANNER_HEADS = frozenset(network[:6] for network in _SCANNER_NETWORKS)


def agent_of_user_agent(user_agent: str, opened: bool) -> tuple[int, int]:
    """Return (agent, reason) as the user agent alone tells; `opened` is False for a click."""
    if not user_agent:
        # Many vendors report no user agent at all: its absence says nothing.
        return HUMAN, 0
    if opened and user_agent == "Mozilla/5.0":
        return MACHINE, APPLE
    if user_agent == _GMAIL_PREFETCH:
        return MACHINE, GMAIL_PREFETCH
    if opened and "GoogleImageProxy" in user_agent:
        return PROXIED, GMAIL_PROXY
    if opened and "YahooMailProxy" in user_agent:
        return PROXIED, YAHOO_PROXY
    if _SCANNER.search(user_agent) and "Microsoft Outlook" not in user_agent:
        return MACHINE, SCANNER_AGENT
    return HUMAN, 0


def scanner_network(ip: str) -> bool:
    # The slice first: it spares nearly every address the long comparison.
    return ip[:6] in _SCANNER_HEADS and ip.startswith(_SCANNER_NETWORKS)


def classify(kind: str, agent: str, agent_reason: str, user_agent: str, ip: str) -> tuple[str, str]:
    """Return (agent, reason) of one event as words, before timing: for the history and a person's timeline."""
    if kind not in ("opened", "clicked"):
        return "", ""
    if agent:
        return agent, agent_reason or AGENT_REASONS[VENDOR_FLAG]
    code, reason = agent_of_user_agent(user_agent, kind == "opened")
    if code == HUMAN and scanner_network(ip):
        code, reason = MACHINE, SCANNER_NETWORK
    return ("", "human", "proxied", "machine")[code], AGENT_REASONS[reason]


class Action(NamedTuple):
    """An open or click of a message, as far as it tells by itself (`classify`)."""

    kind: str
    at_us: int
    url: str
    agent: str
    reason: str


def judge(actions: list[Action], delivered_us: int | None) -> list[tuple[str, str]]:
    """Return (agent, reason) of all opens and clicks of one message, with what they say about each other: as the fold judges.

    Only what looked human by itself, for want of any sign, can still turn out to be a machine's.
    """
    verdicts = []
    for action in actions:
        verdict = action.agent, action.reason
        if verdict == ("human", ""):
            if action.kind == "clicked" and _in_burst(action, actions):
                verdict = "machine", AGENT_REASONS[BURST]
            elif delivered_us is not None and abs(action.at_us - delivered_us) < too_soon_us:
                verdict = "machine", AGENT_REASONS[TOO_SOON]
        verdicts.append(verdict)
    return verdicts


def _in_burst(action: Action, actions: list[Action]) -> bool:
    clicks = [a for a in actions if a.kind == "clicked"]
    for first in clicks:
        if first.at_us <= action.at_us <= first.at_us + burst_us:
            urls = {a.url for a in clicks if first.at_us <= a.at_us <= first.at_us + burst_us}
            if len(urls) >= burst_urls_min:
                return True
    return False
