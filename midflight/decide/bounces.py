"""What a bounce says: why, whose fault it is, and whether the address is dead, from SMTP code, enhanced code and text; pure.

Words come before codes, because servers choose words with more care than codes: ``5.1.1`` stands on mailboxes that are full and on
senders who are too fast, and "user unknown" on nearly nothing else than unknown users. RULES are read from top to bottom and the first
that fits decides; where none fits, the code does. A rule is a list of plain phrases, looked for as substrings: no pattern can be made to
run for long, and the text is cut first.

Sources: RFC 5321 section 4.2.3 (SMTP codes); RFC 3463 and the IANA registry of enhanced status codes
(www.iana.org/assignments/smtp-enhanced-status-codes) with RFC 5248, 7293 (owner has changed), 7372 (authentication), 7504 and 7505 (host
takes no mail); RFC 6647 (greylisting); the messages in the sources of Postfix, Exim, Sendmail, qmail, Courier and Exchange; and the
lists of vendors: Gmail support.google.com/a/answer/3726730, Outlook.com
sendersupport.olc.protection.outlook.com/pm/troubleshooting.aspx, Exchange Online
learn.microsoft.com/exchange/mail-flow-best-practices/non-delivery-reports-in-exchange-online, Yahoo
senders.yahooinc.com/smtp-error-codes, Comcast postmaster.comcast.net/mail-error-codes.html, Apple support.apple.com/en-us/102322.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

text_chars_max = 2000
tokens_max = 300
begin_chars = 3  # of a phrase by which it is looked up, with the space before it
REASONS = (
    "unknown_mailbox", "mailbox_full", "mailbox_disabled", "no_such_domain", "deferred", "rate_limited", "blocklisted", "policy",
    "authentication", "content", "size", "configuration", "network", "other",
)  # fmt: skip
FAULTS = {
    "unknown_mailbox": "address", "mailbox_full": "address", "mailbox_disabled": "address", "no_such_domain": "address",
    "deferred": "receiver", "network": "receiver", "rate_limited": "sender", "blocklisted": "sender", "policy": "sender",
    "authentication": "sender", "configuration": "sender", "content": "message", "size": "message", "other": "",
}  # fmt: skip
# What a permanent refusal for each reason is; a temporary one is always soft.
CLASSES = {
    "unknown_mailbox": "hard", "no_such_domain": "hard", "mailbox_disabled": "hard", "mailbox_full": "soft", "deferred": "soft",
    "network": "soft", "other": "soft", "rate_limited": "block", "blocklisted": "block", "policy": "block", "authentication": "block",
    "configuration": "block", "content": "block", "size": "block",
}  # fmt: skip


class Rule(msgspec.Struct, frozen=True):
    """Phrases that mean one reason, in plain words as `plain` returns them.

    A phrase fits from the start of a word on; ``a + b`` needs both, anywhere; one with a dot or a slash is looked for in names of hosts
    and in addresses of pages, and nowhere else.
    """

    reason: str
    phrases: tuple[str, ...]
    dead: float = 0.0  # how sure it is that the address is dead, where it was refused for good


class Bounce(msgspec.Struct, kw_only=True, frozen=True):
    """What is to be judged: ``code`` the SMTP code or 0, ``enhanced`` the status code of the report or ``""``, ``text`` what was said.

    ``bounce_class`` is what the vendor makes of it; it decides only where neither words nor codes say anything.
    """

    code: int = 0
    enhanced: str = ""
    text: str = ""
    bounce_class: str = ""


class Verdict(msgspec.Struct, kw_only=True, frozen=True):
    """``dead`` is whether the address is to be taken for dead, ``confidence`` how sure that it is (0 to 1).

    ``because`` is the phrase or the code that decided, for people; ``by`` says which of them: words, code or vendor.
    """

    reason: str
    bounce_class: str
    fault: str
    dead: bool
    confidence: float
    permanent: bool
    by: str
    because: str


RULES = (
    # Whoever names two things means the first: a page or address in the message that is listed, a reputation, a rate.
    Rule("content", ("blacklisted url", "url + blacklist", "url + listed", "link + blacklist")),
    Rule("policy", ("low reputation", "poor reputation", "bad reputation", "reputation of the", "reputation is")),
    Rule("rate_limited", ("connection frequency", "frequency limit", "rate limited due to")),
    # Authentication: SPF, DKIM, DMARC and ARC (RFC 7372); Gmail 5.7.26, Exchange 5.7.509, Yahoo, Apple, GoDaddy.
    Rule("authentication", (
        "dmarc", "dkim", "spf + fail", "spf record", "spf check", "spf validation", "spf policy", "spf + not allowed",
        "spf + not permitted", "spf + unauthorized", "spf + reject", "does not designate", "authentication checks failed",
        "authentication information", "unauthenticated", "unauthenticated senders", "authentication required from sender",
        "sender policy framework", "fails to pass auth", "not authorized to send from", "not authorized to send on behalf",
        "not allowed to send from", "sender id + fail", "domain owner discourages", "spoofed", "spoofing",
    )),
    # Lists of senders, public or the receiver's own (RFC 5782).
    Rule("blocklisted", (
        "spamhaus.org", "barracudacentral.org", "barracudanetworks.com/reputation", "spamcop.net", "sorbs.net", "dnsbl.", "dnsbl",
        "rbl ", "rbl.", "/rbl", "spamhaus", "spamcop", "sorbs", "realtime blackhole", "real-time blackhole", "csi.cloudmark.com",
        "backscatterer", "uceprotect", "abusix", "senderscore", "invaluement", "psbl", "spamrats", "surbl", "uribl", "block list",
        "blocklist", "blocked list", "black list", "blacklist", "denylist", "deny list", "banned sending ip", "banned ip", "ip + banned",
        "your ip + blocked", "ip address + blocked", "blocked using", "blocked by", "listed at", "listed by", "listed in", "listed on",
        "is listed", "client host + blocked", "blocked ip", "ip blocked", "sender ip + blocked", "host is blocked", "host blocked",
        "blocked for spam", "you are blocked", "has been blacklisted", "ip source + bloquee", "bloquee", "blockiert", "gesperrte ip",
        "host network not allowed", "bl ", "cidr blocked", "use the smtp server of your isp", "dynamic ip", "dialup", "dial-up",
        "dynamic/residential", "residential ip",
    )),
    # Our own set-up: reverse DNS, HELO, envelope sender, relaying, TLS. Before "no such domain", which is also said of senders.
    Rule("configuration", (
        "reverse dns", "rdns", "ptr record", "ptr resource record", "no ptr", "dns ptr", "reverse lookup", "reverse mapping",
        "cannot resolve your", "cannot find your", "cannot find your hostname", "unverifyable sending", "unverifiable sending",
        "valid sender domain", "may not be mail exchanger", "helo", "ehlo", "fcrdns", "sender address rejected", "sender rejected",
        "sender domain", "sender address + not exist", "domain of sender", "sender address + does not", "sender verify",
        "sender verification", "unroutable sender", "invalid sender", "sender is invalid", "sender unknown", "unknown sender",
        "sender + not found", "sender address is not", "bad sender", "mail from domain", "return path", "envelope sender",
        "from address + rejected", "from address + invalid",
    )),
    Rule("configuration", (
        "relaying denied", "relay access denied", "unable to relay", "relay not permitted", "relaying not allowed", "relay denied",
        "relaying is not", "relay is not", "no relaying", "not relay", "relaying prohibited", "relay prohibited", "not a relay",
        "not configured to relay", "not permitted to relay", "cannot relay", "authentication required", "must authenticate", "starttls",
        "tls required", "must issue a starttls", "tls + required",
    ), 0.2),
    # Too much or too fast (RFC 7372 and registry X.7.28; Gmail 4.2.1 and 4.7.28, Yahoo TSS, Outlook.com, Exchange 5.7.705).
    Rule("rate_limited", (
        "rate limit", "ratelimit", "rate-limit", "too many messages", "too many mails", "too many emails", "too many connections",
        "too many concurrent", "too many recipients", "too many sessions", "too many simultaneous", "too many requests", "too many smtp",
        "too many rcpt", "too many errors", "too many invalid", "too many bad", "too many unknown", "receiving mail at a rate",
        "receiving email at a rate", "receiving mail too quickly", "receiving email too quickly", "unusual rate", "suspicious rate",
        "unexpected volume", "excessive volume", "excessive rate", "volume + exceed", "throttl", "sending rate", "message rate",
        "connection rate", "connection frequency", "frequency limit", "connection limit", "concurrent connections", "concurrency limit",
        "daily limit", "hourly limit", "hourly + exceed", "daily quota", "daily sending", "sending limit", "relay quota", "relay limit",
        "messages per", "per hour", "this hour", "limit exceeded for sender", "mail flood", "slow down", "quota + sending",
        "temporarily deferred due to", "deferred due to + complaints", "tenant has exceeded", "exceeded + threshold",
    )),
    # Come again later, to all who are new (RFC 6647).
    Rule("deferred", ("greylist", "graylist", "grey listing", "gray listing", "grey-list", "gray-list", "first contact")),
    # Full boxes; 5.2.2 in the registry. Some send it as 5.1.1.
    Rule("mailbox_full", (
        "over quota", "overquota", "quota exceeded", "exceeded + quota", "exceeds + quota", "quota + full", "disk quota",
        "quotaexceeded", "over the quota", "over its quota", "over disk quota", "exceeds allowed quota", "storage quota",
        "out of storage", "storage space", "exceeded storage", "storage exceeded", "exceeded its storage", "exceeded the storage",
        "insufficient storage for", "mailbox full", "mailbox is full", "mailbox has exceeded", "mailbox + exceed", "mailbox + full",
        "mail box full", "inbox is full", "inbox full", "inbox + full", "mailfolder is full", "account is full",
        "account full", "user is over", "recipient is over", "maximum storage", "mailbox size limit", "size of mailbox",
        "not enough space", "no space left for", "not enough storage", "boite + pleine", "boite pleine", "quota depasse",
        "depassement de quota", "postfach voll", "postfach + voll", "speicherplatz", "buzon lleno", "buzon + lleno", "casella + piena",
        "casella piena", "caixa + cheia", "overfull", "mbox full",
    ), 0.15),
    # Name servers that fail are the road's fault, whatever they fail to find.
    Rule("network", (
        "malformed or unexpected name server", "name server timeout", "name service error + try again", "servfail", "dns timeout",
        "temporary lookup failure", "temporary dns", "temporary resolution", "dns + temporar", "host not found try again",
    )),
    # What the message is: spam words, viruses, attachments, form (5.6.x).
    Rule("content", (
        "spam", "junk mail", "junkmail", "unsolicited", "unwanted content", "bulk mail", "bulk email", "virus", "malware", "phish",
        "infected", "message content", "content rejected", "content + rejected", "content + blocked", "its content", "message contains",
        "prohibited attachment", "attachment + not", "attachment + blocked", "executable", "suspicious", "ube ", "rfc 5322", "rfc 2822",
        "rfc5322", "rfc2822", "rfc 822", "non-compliant", "not compliant", "from header", "multiple + headers", "header error",
        "headers too large", "header + too", "malformed", "8-bit data", "improper use of", "missing + header", "bare lf",
        "message filtered", "content filter", "message looks like", "message rejected by filter", "conversion + failed",
    )),
    # Size, which is not a full box (5.2.3, 5.3.4).
    Rule("size", (
        "message too large", "message too big", "message size exceeds", "message size + limit", "size limit", "exceeds maximum size",
        "maximum message size", "message file too big", "message length exceeds", "message exceeds", "too large for", "message is too",
        "size exceeds", "fixed maximum message size", "larger than the",
    )),
    # A box that exists and takes nothing for now or for ever (5.2.1, 5.7.13). Not dead by itself: people come back to it.
    Rule("mailbox_disabled", (
        "account disabled", "account is disabled", "account has been disabled", "account + disabled", "account + inactive",
        "inactive account", "is inactive", "inactive user", "inactive mailbox", "inactive email address", "inactive recipient",
        "mailbox disabled", "mailbox is disabled", "mailbox has been disabled", "mailbox + disabled", "mailbox is inactive",
        "mailbox inactive", "mailbox frozen", "mailbox is frozen", "mailbox blocked", "mailbox is blocked", "mailbox has been blocked",
        "mailbox is locked", "mailbox locked", "mailbox suspended", "mailbox + suspended", "account suspended", "account is suspended",
        "account has been suspended", "account + suspended", "account locked", "account is locked", "account blocked",
        "account is blocked", "account + blocked", "account + deactivated", "account deactivated", "user is suspended", "user suspended",
        "user is disabled", "user disabled", "user account is disabled", "user has been suspended", "user deactivated",
        "disabled recipient", "recipient + disabled", "recipient suspended", "recipient is disabled", "address is disabled",
        "address disabled", "email address is not active", "not active", "temporarily disabled", "account + expired", "account expired",
        "account on hold", "is on hold", "compte + bloque", "compte + desactive", "compte + suspendu", "cuenta + desactivada",
        "deaktiviert", "disabled due to inactivity", "not accepting messages for", "mailbox is not accepting", "is not accepting mail",
        "not accepting new mail",
    ), 0.4),
    # Domains that are not there (5.1.2, 5.4.4) or take no mail (RFC 7504, RFC 7505).
    Rule("no_such_domain", (
        "host not found", "host unknown", "unknown host", "no such host", "domain not found", "no such domain", "unknown domain",
        "domain unknown", "domain does not exist", "domain doesnt exist", "domain is not reachable", "domain + not exist",
        "domain + not found", "domain is invalid", "invalid domain", "bad destination host", "bad destination system",
        "name or service not known", "nxdomain", "null mx", "nullmx", "domain does not accept mail", "host does not accept mail",
        "domain accepts no mail", "no mail hosts", "no mail exchanger", "no mx", "mx + not found", "mx lookup failed",
        "domain + no valid", "unrouteable mail domain", "unroutable domain", "unrouteable domain", "couldnt find any host",
        "couldnt find a mail exchanger", "all relevant mx records point to non-existent", "domain has been disabled", "domain disabled",
        "domain is disabled", "domain expired", "no route to domain", "illegal host", "domaine + existe pas",
        "domain does not receive mail", "not accepting network messages", "host does not receive",
    ), 0.9),
    # Nobody of that name (5.1.1).
    Rule("unknown_mailbox", (
        "user unknown", "unknown user", "userunknown", "user not known", "user not found", "user + not found", "unknown local",
        "unknown recipient", "recipient unknown", "unknown address", "address unknown", "unknown or illegal alias",
        "unknown or illegal user", "unknown or invalid", "unknown mailbox", "mailbox unknown", "unknown account", "account unknown",
        "unknown email", "unknown e-mail", "unknown alias", "unknown to", "unknown rcpt", "unknown customer", "no such user",
        "no such mailbox", "no such recipient", "no such address", "no such person", "no such account", "no such local", "no such email",
        "no such e-mail", "no such alias", "no such name", "nosuchuser", "no mailbox", "no valid recipient", "no user", "no account",
        "no email address", "not a valid user", "not a valid mailbox", "not a valid recipient", "not a valid address",
        "not a valid email", "not a known user", "not a local user", "not our user", "not our customer", "not known here",
        "not known at this", "user not listed", "not listed in public", "not listed in domino", "isnt a valid", "invalid recipient",
        "invalid mailbox", "invalid user", "invalid address", "invalid email", "invalid e-mail", "recipient invalid", "address invalid",
        "mailbox invalid", "mailbox not found", "mailbox + not found", "account not found", "recipient not found", "recipnotfound",
        "recipientnotfound", "resolver.adr.", "address not found", "email address could not be found", "could not be found",
        "couldnt be found", "wasnt found", "does not exist", "doesnt exist", "not exist", "dont exist", "non-existent", "nonexistent",
        "non existent", "inexistent", "doesnt have a", "does not have an account", "does not have a mailbox", "doesnt have an",
        "have an account", "no longer on server", "no longer available", "no longer valid", "no longer in use", "no longer exists",
        "no longer active", "no longer employed", "has been deleted", "was deleted", "account deleted", "mailbox deleted",
        "account closed", "account has been closed", "has been terminated", "account terminated", "user has moved", "mailbox moved",
        "mailbox has moved", "recipient has moved", "unrouteable address", "unroutable address", "undeliverable address",
        "address is invalid", "addressee unknown", "badrcptto", "local_user_unknown", "user_unknown", "unknown virtual",
        "recipient table", "mailbox table", "alias table", "user doesnt have", "user has left", "account is closed", "mailbox is closed",
        "illegal user", "illegal alias", "bad destination email", "bad destination mailbox", "destinataire invalide",
        "destinataire inconnu", "utilisateur inconnu", "adresse inconnue", "adresse invalide", "existe pas", "unbekannter empfanger",
        "empfanger unbekannt", "benutzer unbekannt", "unbekannter benutzer", "adresse unbekannt", "existiert nicht",
        "usuario desconocido", "usuario inexistente", "no existe", "destinatario desconocido", "destinatario inexistente",
        "utente sconosciuto", "utente non esiste", "utente non trovato", "destinatario non esiste", "destinatario non trovato",
        "casella inesistente", "non esiste", "usuario nao existe", "usuario nao encontrado", "nao existe", "uzytkownik nie istnieje",
        "nie istnieje", "onbekende gebruiker", "bestaat niet", "user account not", "cannot find user", "cant find user",
        "unable to find recipient", "failed to route the address", "no valid mailbox", "not a mailbox",
    ), 0.95),
    # The road, not the destination.
    Rule("network", (
        "connection timed out", "connection timeout", "timed out", "timeout", "connection refused", "connection reset",
        "connection lost", "connection dropped", "lost connection", "no route to host", "network is unreachable", "network unreachable",
        "host unreachable", "unable to connect", "could not connect", "couldnt connect", "cannot connect", "failed to connect",
        "no answer from", "unable to deliver in time", "message expired", "message expi", "delivery time expired",
        "retry time not reached", "retry timeout", "expired", "too many hops", "hop count", "mail loop", "loops back", "routing loop",
        "loop detected", "last-attempt-date", "last attempt date", "dns failure", "name service", "name server", "bad connection",
    )),
    # The receiver does not want this sender now.
    Rule("policy", (
        "reputation", "policy", "policies", "not accepted for", "access denied", "administrative prohibition", "administratively",
        "prohibited", "not allowed", "not permitted", "not authorized", "unauthorized", "user complaints", "complaint", "high risk",
        "client host rejected", "rejected by this system", "rejected by recipient", "recipient rejected your", "refused by",
        "message refused", "message rejected", "mail rejected", "mail rejete", "mail refused", "message blocked", "has been blocked",
        "was blocked", "blocked", "denied", "restricted", "not welcome", "local policy", "security", "transaction failed + block",
        "service refused", "email not accepted", "we do not accept mail", "mail not accepted", "sending domain", "sending ip",
    )),
)  # fmt: skip

# Phrases that say little: a code that means something goes before them.
LATER = (
    "try again", "try later", "temporar", "later", "system busy", "server busy", "too busy", "resources", "service not available",
    "deferred", "delayed", "recipient error", "greeting",
)  # fmt: skip
# Phrases that only mean something together with the code.
WEAK = ("mailbox unavailable", "recipient address rejected", "recipient rejected", "address rejected", "requested action not taken",
        "rejected", "user rejected", "service unavailable", "undeliverable", "mailbox not available", "invalid")  # fmt: skip

# Enhanced codes: subject.detail to a reason, and how sure it is that a permanent one means a dead address. Registry and RFC 3463, 7293,
# 7505.
CODES = {
    "1.0": ("unknown_mailbox", 0.6), "1.1": ("unknown_mailbox", 0.9), "1.2": ("no_such_domain", 0.9), "1.3": ("unknown_mailbox", 0.7),
    "1.4": ("unknown_mailbox", 0.5), "1.6": ("unknown_mailbox", 0.9), "1.7": ("configuration", 0.0), "1.8": ("configuration", 0.0),
    "1.9": ("configuration", 0.0), "1.10": ("no_such_domain", 0.9), "2.1": ("mailbox_disabled", 0.4), "2.2": ("mailbox_full", 0.1),
    "2.3": ("size", 0.0), "2.4": ("configuration", 0.1), "3.0": ("other", 0.05), "3.1": ("deferred", 0.0), "3.2": ("deferred", 0.2),
    "3.3": ("configuration", 0.0), "3.4": ("size", 0.0), "3.5": ("configuration", 0.0), "4.0": ("network", 0.05), "4.1": ("network", 0.1),
    "4.2": ("network", 0.05), "4.3": ("network", 0.1), "4.4": ("no_such_domain", 0.7), "4.5": ("network", 0.0), "4.6": ("network", 0.1),
    "4.7": ("network", 0.05), "5.3": ("rate_limited", 0.0), "7.13": ("mailbox_disabled", 0.4), "7.17": ("unknown_mailbox", 0.8),
    "7.18": ("no_such_domain", 0.8), "7.20": ("authentication", 0.0), "7.21": ("authentication", 0.0), "7.22": ("authentication", 0.0),
    "7.23": ("authentication", 0.0), "7.24": ("authentication", 0.0), "7.25": ("configuration", 0.0), "7.26": ("authentication", 0.0),
    "7.27": ("configuration", 0.0), "7.28": ("rate_limited", 0.0), "7.29": ("authentication", 0.0),
    # Exchange Online: authentication (509, 515), refused networks (606 to 649, 708, 7xx), too much (705).
    "7.509": ("authentication", 0.0), "7.515": ("authentication", 0.0), "7.705": ("rate_limited", 0.0), "7.708": ("blocklisted", 0.0),
    "1.351": ("unknown_mailbox", 0.7),
}  # fmt: skip
SUBJECTS = {
    "1": ("unknown_mailbox", 0.5), "2": ("other", 0.2), "3": ("other", 0.05), "4": ("network", 0.05), "5": ("other", 0.1),
    "6": ("content", 0.0), "7": ("policy", 0.05),
}  # fmt: skip
# SMTP codes where nothing else is said (RFC 5321 section 4.2.3; 521 and 556: RFC 7504).
REPLIES = {
    421: ("deferred", 0.0), 450: ("deferred", 0.0), 451: ("deferred", 0.0), 452: ("deferred", 0.0), 521: ("no_such_domain", 0.6),
    551: ("unknown_mailbox", 0.7), 552: ("mailbox_full", 0.1), 553: ("unknown_mailbox", 0.5), 556: ("no_such_domain", 0.8),
    525: ("mailbox_disabled", 0.4),
}  # fmt: skip
dead_from = 0.5
# Address words are worth less beside a code that speaks of something else: of the mailbox, of policy, of nothing.
WORTH = {"1": 1.0, "0": 0.95, "5": 0.95, "2": 0.8, "3": 0.9, "7": 0.85, "4": 0.8, "6": 0.6, "": 0.95}
undefined_mailbox_worth = 0.5  # beside X.2.0: phone carriers say "unknown user" of people who filter, with this code

_ENHANCED = re.compile(r"(?<![\d.])([245])\.(\d{1,3})\.(\d{1,3})(?![\d.]*\d)", re.ASCII)
_REPLY = re.compile(r"\s*([245]\d\d)(?=[\s\-]|$)", re.ASCII)
_SPACES = str.maketrans(dict.fromkeys('<>()[]{}"`,;:|*!?\n\r\t=\u00a0', " ") | {"'": None, "\u2019": None, "\u2018": None})


def bounce_of(code: str, detail: str, bounce_class: str = "") -> Bounce:
    """Return the bounce of an event's ``code`` (``550``, ``5.1.1`` or ``550 5.1.1``), ``detail`` and class."""
    reply, enhanced = _REPLY.match(code[:32]), _ENHANCED.search(code[:32])
    return Bounce(
        code=int(reply.group(1)) if reply else 0,
        enhanced=enhanced.group(0) if enhanced else "",
        text=detail,
        bounce_class=bounce_class,
    )


def classify(bounce: Bounce) -> Verdict:
    """Return what a bounce says. Any text and any codes get a verdict; nothing raises."""
    text = bounce.text[:text_chars_max]
    code, subject, detail, text = _codes(bounce, text)
    permanent = code >= 500 or (code == 0 and bounce.bounce_class != "soft")
    words = plain(text)
    reason, dead, because = by_words(words)
    by = "words" if reason else "code"
    if not reason:
        reason, dead, because = by_code(code, subject, detail, words)
    elif dead > 0:
        reason, dead = beside(reason, dead, subject, detail)
    if reason == "other" and not dead and bounce.bounce_class == "hard" and not because:
        dead, by, because = 0.55, "vendor", "the vendor calls it a hard bounce"
    if not permanent:
        dead *= 0.2
    bounce_class = CLASSES[reason] if permanent else "soft"
    if by == "vendor":
        bounce_class = "hard"
    confidence = round(min(0.99, dead), 4)
    return Verdict(
        reason=reason, bounce_class=bounce_class, fault=FAULTS[reason], dead=confidence >= dead_from, confidence=confidence,
        permanent=permanent, by=by if because else "", because=because,
    )  # fmt: skip


class Words(NamedTuple):
    """A text's words, and apart from them its names of hosts and addresses of pages: a host may be called anything."""

    words: str
    hosts: str


def plain(text: str) -> Words:
    """Return a text in lower case, without accents, addresses of people, codes, continuation marks and most punctuation."""
    text = text[:text_chars_max].lower()
    if not text.isascii():
        text = "".join(char for char in unicodedata.normalize("NFKD", text).lower() if not unicodedata.combining(char))
    text = text.translate(_SPACES)
    kept, hosts = [], []
    for token in text.split()[:tokens_max]:
        token = token.strip(".#-_/")
        # Addresses name people and servers, which may be called anything.
        if not token or "@" in token or _is_code(token):
            continue
        (hosts if "." in token or "/" in token else kept).append(token)
    return Words(f" {' '.join(kept)} ", f" {' '.join(hosts)} ")


def by_words(words: Words) -> tuple[str, float, str]:
    """Return the reason, how sure the address is dead, and the phrase, of the first rule that fits; ``""`` where none does."""
    text, hosts = words
    begins = {f" {word} "[:begin_chars] for word in text.split()}
    # Few phrases begin as a word of a text does.
    numbers = [number for begin in begins for number in _BEGINNING.get(begin, ())]
    if hosts.strip():
        numbers += _IN_HOSTS
    for number in sorted(numbers):
        rule, phrase, first, second, in_hosts = _LOOKED_FOR[number]
        if _says(words, phrase) if in_hosts else first in text and second in text:
            return rule.reason, rule.dead, phrase
    return "", 0.0, ""


def by_code(code: int, subject: str, detail: str, words: Words) -> tuple[str, float, str]:
    """Return the same by the codes alone."""
    name = f"{subject}.{detail}"
    weak = next((phrase for phrase in WEAK if f" {phrase}" in words.words), "")
    if subject and name in CODES and name != "3.0":
        reason, dead = CODES[name]
        # 521 beside "system not accepting messages" is a host that takes no mail at all (RFC 7504).
        if name == "3.2" and code in (521, 556):
            return "no_such_domain", 0.8, f"{code} {code // 100}.{name}"
        if name == "4.4" and code < 500:
            return "network", 0.05, f"{code // 100}.{name}"
        return reason, dead, f"{code // 100}.{name}"
    if subject == "7" and detail.isdigit() and 606 <= int(detail) <= 649:
        return "blocklisted", 0.0, f"{code // 100}.{name}"
    if later := next((phrase for phrase in LATER if f" {phrase}" in words.words), ""):
        return "deferred", 0.0, later
    if weak == "mailbox unavailable" and subject in ("", "0", "1", "2", "5"):
        return "unknown_mailbox", 0.6, weak
    if code in REPLIES and subject in ("", "0"):
        return (*REPLIES[code], str(code))
    if weak in ("recipient address rejected", "recipient rejected", "address rejected") and subject in ("", "0"):
        return "unknown_mailbox", 0.55, weak
    if subject in SUBJECTS:
        return (*SUBJECTS[subject], f"{code // 100}.{name}")
    if 400 <= code < 500:
        return "deferred", 0.0, str(code)
    if weak == "rejected":
        return "policy", 0.05, weak
    return "other", 0.0, str(code) if code and weak else ""


def beside(reason: str, dead: float, subject: str, detail: str) -> tuple[str, float]:
    """Return what words about the address are worth beside the code."""
    if reason == "mailbox_disabled":
        # "Inactive" with the code of an unknown mailbox: the account is gone rather than asleep.
        return reason, 0.7 if (subject, detail) == ("1", "1") else dead
    if reason not in ("unknown_mailbox", "no_such_domain"):
        return reason, dead
    if (subject, detail) == ("2", "0"):
        return reason, dead * undefined_mailbox_worth
    if (subject, detail) in (("1", "7"), ("1", "8")):
        # The sender's mailbox or domain is the one that does not exist.
        return "configuration", 0.0
    return reason, dead * WORTH.get(subject, 0.9)


def _codes(bounce: Bounce, text: str) -> tuple[int, str, str, str]:
    """Return the SMTP code (by the enhanced one where it is not known), subject and detail of the enhanced one, and the text that counts.

    One report may quote what was said of several recipients. Then the text counts from the report's own code on; and where the report says
    "full" and the text "unknown" by their codes, or the other way round, the text is about somebody else and counts for nothing.
    """
    reply = _REPLY.match(text)
    code = bounce.code or (int(reply.group(1)) if reply else 0)
    found = list(_ENHANCED.finditer(text))
    said = [match.groups() for match in found]
    given = _ENHANCED.fullmatch(bounce.enhanced.strip()[:12])
    report = given.groups() if given else None
    # X.0.0 and X.5.0 stand where a mail server was told no code, and 5.0.9xx is made up by programs that read bounces: they say nothing
    # more than "permanent" or "temporary".
    own = report if report and report[1] != "0" and report[1:] != ("5", "0") else None
    if own and own in said and len(set(said)) > 1:
        text = text[found[said.index(own)].start() :]
    elif own and said and all({other[1:], own[1:]} in _CONTRARY for other in said):
        text = ""
    number = own or (said[0] if said else None) or report
    if number is None:
        return code, "", "", text
    klass = int((report or number)[0])
    if code == 0 or (klass == 4 and code >= 500):
        code = klass * 100
    return code, "" if number[1] == "0" else number[1], number[2], text


_FULL, _UNKNOWN = ("2", "2"), ("1", "1")
_CONTRARY = ({_FULL, _UNKNOWN},)


def _says(words: Words, phrase: str) -> bool:
    if phrase.startswith("/"):
        return phrase in words.hosts
    if "." in phrase or "/" in phrase:
        # Whole labels: `spamhaus.org` and what is below it, not `spamhaus.org.b.example`.
        ends = ("",) if phrase.endswith(".") else (" ", "/")
        return any(f"{begin}{phrase}{end}" in words.hosts for begin in " ./" for end in ends)
    if " + " in phrase:
        first, second = phrase.split(" + ")
        return f" {first}" in words.words and f" {second}" in words.words
    return f" {phrase}" in words.words


def _looked_for() -> Iterator[tuple[Rule, str, str, str, bool]]:
    """Yield every phrase of every rule in the form in which it is looked for: what has to be among the words, or whether it is a host."""
    for rule in RULES:
        for phrase in rule.phrases:
            in_hosts = phrase.startswith("/") or "." in phrase or "/" in phrase
            first, _, second = phrase.partition(" + ")
            yield rule, phrase, f" {first}", f" {second}" if second else "", in_hosts


_LOOKED_FOR = tuple(_looked_for())
_IN_HOSTS = [number for number, one in enumerate(_LOOKED_FOR) if one[4]]
# Every phrase begins with a whole word, or with a part of one that is long enough.
_BEGINNING: dict[str, list[int]] = {}
for _number, (_, _, _first, _, _in_hosts) in enumerate(_LOOKED_FOR):
    if not _in_hosts:
        assert len(_first) >= begin_chars
        _BEGINNING.setdefault(_first[:begin_chars], []).append(_number)


def _is_code(token: str) -> bool:
    """Whether a token is a code or a continuation mark, as in ``550-5.7.1``."""
    head = token[:3]
    if not (head.isdigit() and head[0] in "245"):
        return bool(_ENHANCED.fullmatch(token))
    rest = token[3:].lstrip("-")
    return not rest or bool(_ENHANCED.fullmatch(rest))
