"""Human, proxied or machine: what one event says by itself, and what a message's events say about each other."""

from __future__ import annotations

import random

import pytest
from test_fold_model import history

from midflight.sandbox.truth import happened_us, rule_agents
from midflight.stream.agents import Action, classify, judge


@pytest.mark.parametrize(
    ("kind", "user_agent", "ip", "verdict"),
    [
        ("opened", "Mozilla/5.0", "17.1.2.3", ("machine", "Apple Mail privacy prefetch")),
        ("clicked", "Mozilla/5.0", "17.1.2.3", ("human", "")),
        ("opened", "Mozilla/5.0 (Windows NT 5.1; rv:11.0) (via ggpht.com GoogleImageProxy)", "", ("proxied", "Gmail image proxy")),
        ("opened", "YahooMailProxy; https://help.yahoo.com", "", ("proxied", "Yahoo image proxy")),
        ("clicked", "Mozilla/5.0 (compatible; BarracudaCentral)", "", ("machine", "scanner or bot user agent")),
        ("opened", "Mozilla/4.0 (compatible; ms-office; MSOffice 16)", "", ("machine", "scanner or bot user agent")),
        ("opened", "Microsoft Office/16.0 (Microsoft Outlook 16.0.5; Pro)", "", ("human", "")),
        ("clicked", "Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0", "209.222.82.9", ("machine", "scanner network")),
        ("clicked", "Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0", "209.222.8.9", ("human", "")),
        ("opened", "", "", ("human", "")),
        ("delivered", "curl/8.0", "", ("", "")),
    ],
)  # fmt: skip
def test_one_event_by_itself(kind, user_agent, ip, verdict):
    """The vendor's flag is missing: the user agent and the network say what they can."""
    assert classify(kind, "", "", user_agent, ip) == verdict


def test_a_vendors_flag_comes_before_everything():
    """A vendor sees more than we do."""
    assert classify("clicked", "machine", "", "Mozilla/5.0 (X11)", "") == ("machine", "vendor flag")


def test_judging_a_message_agrees_with_the_sandboxes_rules():
    """Random messages full of coincidences: the timeline's verdicts are those of the brute-force rules, which the fold is held to."""
    machines = 0
    for seed in range(3000):
        messages: dict[str, list] = {}
        for event in history(random.Random(seed)):
            if event.message_id:
                messages.setdefault(event.message_id, []).append(event)
        for events in messages.values():
            delivered = min((happened_us(e) for e in events if e.kind == "delivered"), default=None)
            acts = [e for e in events if e.kind in ("opened", "clicked")]
            actions = [Action(e.kind, happened_us(e), e.url, *classify(e.kind, e.agent, "", e.user_agent, e.ip)) for e in acts]
            wanted = [agent for agent in rule_agents(events) if agent]
            assert [agent for agent, _ in judge(actions, delivered)] == wanted, f"seed {seed}"
            machines += wanted.count("machine")
    assert machines > 1000
