"""Who blocks us is named where a text says so, and nobody is named who is not meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.decide import signs
from midflight.decide.signs import SIGNS, Named, named

# What servers really write, with other addresses: text, and all who are named in it.
SAID = (
    ("554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org; "
     "https://www.spamhaus.org/query/ip/192.0.2.1", ["spamhaus"]),
    ("553 http://www.spamhaus.org/query/bl?ip=192.0.2.1", ["spamhaus"]),
    ("550 5.2.1 Mailbox unavailable. Your IP address 192.0.2.1 is blacklisted using SPAMHAUS-XBL. Details:", ["spamhaus"]),
    ("550 5.7.1 Your email was rejected due to having a domain present in the Spamhaus DBL -- see https://www.spamhaus.org/dbl/",
     ["spamhaus_dbl"]),
    ("550 5.7.1 Service unavailable, Client host [192.0.2.1] blocked using Spamhaus. To request removal from this list see "
     "https://www.spamhaus.org/query/ip/192.0.2.1 AS(1450)", ["spamhaus"]),
    ("554 5.7.1 Client host [192.0.2.1] blocked using pbl.spamhaus.org", ["spamhaus_pbl"]),
    ("454 4.7.1 Service unavailable; Client host [192.0.2.1] blocked using dnsbl.sorbs.net; Currently Sending Spam", ["sorbs"]),
    ("554 5.7.1 blocked using b.barracudacentral.org; http://www.barracudanetworks.com/reputation/?pr=1&ip=192.0.2.1", ["barracuda"]),
    ("550 JunkMail rejected - host [192.0.2.1]:24706 is in an RBL: Blocked - see https://www.spamcop.net/bl.shtml?192.0.2.1", ["spamcop"]),
    ("554 Blocked - see https://support.proofpoint.com/dnsbl-lookup.cgi?ip=192.0.2.1", ["proofpoint"]),
    ("550 mwinf5c04 ME Adresse IP source bloquee pour incident de spam. Client host blocked for spamming issues. OFR006_102 Ref "
     "http://csi.cloudmark.com/reset-request/?ip=192.0.2.1 [102]", ["cloudmark", "orange"]),
    ("550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of "
     "their network "
     "is on our block list (S3140). You can also refer your provider to http://mail.live.com/mail/troubleshooting.aspx#errors.",
     ["microsoft_blocklist"]),
    ("550 SC-001 (SNT004-MC10F17) Unfortunately, messages from 192.0.2.1 weren't sent. Please contact your Internet service provider "
     "since part of "
     "their network is on our block list.", ["microsoft_blocklist"]),
    ("451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. For e-mail delivery information, see "
     "https://postmaster.live.com (S3113)", ["microsoft_rate"]),
    ("550 5.7.606 Access denied, banned sending IP [192.0.2.1]. To request removal from this list please visit https://sender.office.com/ "
     "(AS16012609)", ["microsoft_banned_ip"]),
    ("550 5.7.509 Access denied, sending domain [B.EXAMPLE] does not pass DMARC verification", ["microsoft_authentication"]),
    ("421-4.7.0 [192.0.2.1 15] Our system has detected an unusual rate of 421-4.7.0 unsolicited mail originating from your IP address. "
     "Please visit "
     "421-4.7.0 https://support.google.com/mail/?p=UnsolicitedRateLimitError to 421 4.7.0 review. x.9 - gsmtp", ["gmail_reputation"]),
    ("550-5.7.1 [192.0.2.1 18] Our system has detected that this message is 550-5.7.1 likely suspicious due to the very low reputation "
     "of the "
     "sending IP 550 5.7.1 address. x.9 - gsmtp", ["gmail_reputation"]),
    ("550-5.7.26 This mail has been blocked because the sender is unauthenticated. 550 5.7.26 x.9 - gsmtp", ["gmail_authentication"]),
    ("421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see "
     "https://postmaster.yahooinc.com/error-codes", ["yahoo_deferred"]),
    ("554 5.7.9 Message not accepted for policy reasons. See https://postmaster.yahooinc.com/error-codes", ["yahoo_policy"]),
    ("550 5.7.1 [CS01] Message rejected due to local policy. Please visit https://support.apple.com/en-us/HT204137", ["apple"]),
    ("554 resimta comcast 192.0.2.1 found on one or more DNSBLs, see http://postmaster.comcast.net/smtp-error-codes.php#BL000001",
     ["comcast"]),
    ("554-No SMTP service 554-Bad DNS PTR resource record. 554 For explanation visit "
     "http://postmaster.gmx.com/en/error-messages?ip=192.0.2.1&c=rdns", ["gmx"]),
    ("550 Connection frequency limited [Blocked IP 192.0.2.1]. http://service.mail.qq.com/cgi-bin/help?subtype=1", ["tencent"]),
    ("554 Host network not allowed - https://community.mimecast.com/docs/DOC-1369#554", ["mimecast"]),
    ("550 5.1.0 sender rejected. Please see https://www.spectrum.net/support/internet/understanding-email-error-codes AUP#In-1310",
     ["spectrum"]),
)  # fmt: skip

# Names that are there and not meant.
NOT_MEANT = (
    "550 5.1.1 <sales@spamhaus.org>: User unknown",
    "550 5.1.1 <barracuda@b.example>... User unknown",
    "550 5.7.1 blocked using dnsbl.notspamhaus.org",
    "550 5.7.1 blocked using zen.spamhaus.org.evil.example",
    "550 5.7.1 blocked using myspamcop.net",
    "550 5.7.1 Access denied. The sender is not listed in Spamhaus",
    "550 5.1.1 User unknown at barracudanetworks.com",
    "550 5.1.1 mailbox S3140 does not exist",
    "550 5.7.1 message id TSS04 rejected by mx.b.example",
    "550 5.7.26 authentication checks failed (mx.b.example)",
    "550 5.7.1 Message rejected due to local policy",
    "554 5.7.9 Message not accepted for policy reasons",
    "550 5.7.509 DMARC failed at mx.b.example",
    "550 5.1.1 no such user. See https://support.google.com/mail/?p=NoSuchUser x.9 - gsmtp",
    "550 outlook.com: user unknown",
    "550 5.2.2 inbox full, see support.apple.com/kb",
    "",
    "550",
)


@pytest.mark.parametrize(("text", "who"), SAID)
def test_who_blocks_is_named(text: str, who: list[str]) -> None:
    """Each text names exactly those who are meant, each with advice and the page that it comes from."""
    assert [found.sign.id for found in named(text)] == who


@pytest.mark.parametrize("text", NOT_MEANT)
def test_nobody_is_named_who_is_not_meant(text: str) -> None:
    """A name in an address, below another's host, beside "not listed", or a code without its owner names nobody."""
    assert named(text) == []


def careless(text: str) -> list[str]:
    """What a search for names and codes anywhere in the text would say: the control."""
    lower = text.lower()
    return [sign.id for sign in SIGNS if any(mark in lower for mark in (*sign.names, *sign.codes))]


def test_a_search_for_names_would_name_the_wrong_ones() -> None:
    """The texts above do tempt: looking for names alone names somebody in most of them."""
    assert sum(bool(careless(text)) for text in NOT_MEANT) >= 10


def test_every_sign_is_told_apart_and_has_a_source() -> None:
    """Ids are unique; each sign has marks, advice and a page; each host is found by itself and names its own sign or a narrower one."""
    assert len({sign.id for sign in SIGNS}) == len(SIGNS)
    for sign in SIGNS:
        assert sign.source.startswith("https://") and sign.advice and sign.what and (sign.hosts or sign.names or sign.codes)
        for host in sign.hosts:
            found = [f.sign.who for f in named(f"550 5.7.1 refused, see https://{host}")]
            assert len(found) == 1, (host, found)
        for name in sign.names:
            assert named(f"550 5.7.1 host is listed by {name}"), name


@given(st.text(max_size=3000))
def test_any_text_is_read(text: str) -> None:
    """Whatever comes from outside is read, and what is found has its mark in the text."""
    for found in named(text):
        assert isinstance(found, Named) and found.mark


@given(st.sampled_from([sign for sign in SIGNS if sign.hosts]), st.text(alphabet="abcxyz-", min_size=1, max_size=8))
def test_a_longer_name_is_another_host(sign: signs.Sign, more: str) -> None:
    """A host whose name only ends or begins like a list's is not the list's."""
    host = sign.hosts[0].partition("/")[0]
    assert not signs._is_host(f"{more}{host}", host) or more.endswith(".")
    assert not signs._is_host(f"{host}{more}", host) and not signs._is_host(f"{host}.{more}", host)
    assert signs._is_host(f"{more.strip('-') or 'a'}.{host}/x", host)
