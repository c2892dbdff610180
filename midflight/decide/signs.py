"""Who blocks us, by the words and codes of a bounce: the list or provider, what it means, what to do, and the page that says so; pure.

A name is given only for marks that nobody else uses: a list's own zone or look-up page, a provider's own code in its own form, or a
list's name within a few words of "blocked" or "listed". A name in somebody's address, in the name of a receiver's host, or beside "not
listed" is none. Several may be named at once, in the order in which they stand below.
"""

from __future__ import annotations

import re

import msgspec

text_chars_max = 2000
tokens_max = 300
near_words = 8  # how far the word "blocked" may stand from a list's name


class Sign(msgspec.Struct, frozen=True, kw_only=True):
    """One who can be named.

    ``hosts``: the list's zones and look-up pages, ``zen.example.org`` or ``example.org/lookup``; any name below them fits too.
    ``names``: words that name it where a word of blocking is near. ``codes``: its own codes, whole words; where ``beside`` is not empty,
    one of these has to stand in the text as well, as words or as a host.
    """

    id: str
    who: str
    kind: str  # list: many receivers ask it; provider: the receiver's own
    about: str  # ip, domain, content, volume, authentication, network
    what: str
    advice: str
    source: str
    hosts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A sign that was found, and the mark by which."""

    sign: Sign
    mark: str


_DELIST = "Find out what was sent from it first: a listing whose cause goes on comes back. "

SIGNS = (
    Sign(
        id="spamhaus_dbl", who="Spamhaus DBL", kind="list", about="domain",
        what="A domain in the message, or of the sender, is on the Domain Block List.",
        advice="Look up every domain that the message links to, shorteners and tracking domains too; ask for removal there.",
        source="https://www.spamhaus.org/blocklists/domain-blocklist/",
        hosts=("dbl.spamhaus.org", "spamhaus.org/dbl", "spamhaus.org/query/dbl", "spamhaus.org/query/domain"), names=("spamhaus dbl",),
    ),
    Sign(
        id="spamhaus_pbl", who="Spamhaus PBL", kind="list", about="ip",
        what="The sending IP is in a range that its owner says sends no mail directly.",
        advice="Send through a mail server with a static address of its own, or have the owner of the range take it out.",
        source="https://www.spamhaus.org/blocklists/policy-blocklist/",
        hosts=("pbl.spamhaus.org", "spamhaus.org/pbl", "spamhaus.org/query/pbl"), names=("spamhaus pbl",),
    ),
    Sign(
        id="spamhaus", who="Spamhaus", kind="list", about="ip",
        what="The sending IP is on a Spamhaus list; many receivers ask it.",
        advice="Hold the IP, look it up at check.spamhaus.org, mend the cause, then ask for removal there. " + _DELIST,
        source="https://check.spamhaus.org/",
        hosts=("zen.spamhaus.org", "sbl.spamhaus.org", "xbl.spamhaus.org", "sbl-xbl.spamhaus.org", "css.spamhaus.org", "check.spamhaus.org",
               "zen.dq.spamhaus.net", "spamhaus.org/query", "spamhaus.org/lookup", "spamhaus.org/sbl"),
        names=("spamhaus", "spamhaus-xbl", "spamhaus-zen", "spamhaus-sbl", "spamhaus-css"),
    ),
    Sign(
        id="barracuda", who="Barracuda", kind="list", about="ip",
        what="The sending IP is on the Barracuda Reputation Block List.",
        advice="Hold the IP, look it up and ask for removal at barracudacentral.org. " + _DELIST,
        source="https://www.barracudacentral.org/lookups",
        hosts=("b.barracudacentral.org", "bb.barracudacentral.org", "barracudacentral.org/lookups", "barracudacentral.org/rbl",
               "barracudacentral.com/reputation", "barracudanetworks.com/reputation"),
        names=("barracuda", "barracudacentral"),
    ),
    Sign(
        id="spamcop", who="SpamCop", kind="list", about="ip",
        what="The sending IP is on the SpamCop Blocking List, from reports of spam and spam traps.",
        advice="It leaves by itself about 24 hours after the last report. Stop what hits traps: old and bought addresses.",
        source="https://www.spamcop.net/fom-serve/cache/298.html",
        hosts=("bl.spamcop.net", "spamcop.net/bl.shtml", "spamcop.net/w3m"), names=("spamcop",),
    ),
    Sign(
        id="sorbs", who="SORBS", kind="list", about="ip",
        what="The receiver asks SORBS, which was shut down on 5 June 2024 and lists nobody since.",
        advice="Nothing can be removed there. Tell the receiver's postmaster that the list is gone.",
        source="https://www.techzine.eu/news/security/120916/proofpoint-discontinues-anti-spam-service-sorbs/",
        hosts=("sorbs.net",), names=("sorbs",),
    ),
    Sign(
        id="uceprotect", who="UCEPROTECT", kind="list", about="ip",
        what="The sending IP, or its whole network (levels 2 and 3), is on UCEPROTECT.",
        advice="Level 1 expires seven days after the last spam; levels 2 and 3 blame the network's neighbours: ask its owner. Do not pay.",
        source="https://www.uceprotect.net/en/rblcheck.php",
        hosts=("dnsbl-1.uceprotect.net", "dnsbl-2.uceprotect.net", "dnsbl-3.uceprotect.net", "uceprotect.net/rblcheck",
               "uceprotect.net/en/rblcheck"),
        names=("uceprotect", "uceprotect-level1", "uceprotect-level2", "uceprotect-level3"),
    ),
    Sign(
        id="backscatterer", who="Backscatterer", kind="list", about="ip",
        what="The sending IP answers forged senders: bounces and autoreplies to people who wrote nothing.",
        advice="Refuse unknown recipients during SMTP instead of bouncing later.", source="https://www.backscatterer.org/",
        hosts=("ips.backscatterer.org", "backscatterer.org"), names=("backscatterer",),
    ),
    Sign(
        id="abusix", who="Abusix", kind="list", about="ip",
        what="The sending IP or a domain is on an Abusix Mail Intelligence list.",
        advice="Look it up and ask for removal at lookup.abusix.com. " + _DELIST, source="https://lookup.abusix.com/",
        hosts=("mail.abusix.zone", "abusix.zone", "lookup.abusix.com", "app.abusix.com/lookup"), names=("abusix",),
    ),
    Sign(
        id="invaluement", who="Invaluement", kind="list", about="ip",
        what="The sending IP or a domain is on an Invaluement list.", advice="Look it up and ask for removal there. " + _DELIST,
        source="https://www.invaluement.com/lookup/", hosts=("invaluement.com/lookup", "sip.invaluement.com", "uri.invaluement.com"),
        names=("invaluement", "ivmsip", "ivmuri"),
    ),
    Sign(
        id="psbl", who="PSBL", kind="list", about="ip", what="The sending IP hit a spam trap of the Passive Spam Block List.",
        advice="Remove it yourself at psbl.org after the cause is mended.", source="https://psbl.org/",
        hosts=("psbl.surriel.com", "psbl.org"), names=("psbl",),
    ),
    Sign(
        id="spamrats", who="SpamRATS", kind="list", about="ip",
        what="The sending IP looks like a dynamic one or has no fitting reverse DNS (or sent spam).",
        advice="Give the IP a reverse DNS name of your own, then ask for removal there.", source="https://www.spamrats.com/lookup.php",
        hosts=("all.spamrats.com", "noptr.spamrats.com", "dyna.spamrats.com", "spam.spamrats.com", "spamrats.com/lookup.php"),
        names=("spamrats",),
    ),
    Sign(
        id="mailspike", who="Mailspike", kind="list", about="ip", what="The sending IP has a bad reputation at Mailspike.",
        advice="Look it up and ask for removal there. " + _DELIST, source="https://mailspike.org/iplookup.html",
        hosts=("bl.mailspike.net", "rep.mailspike.net", "z.mailspike.net", "mailspike.org/iplookup.html", "mailspike.org/anubis"),
        names=("mailspike",),
    ),
    Sign(
        id="surbl", who="SURBL", kind="list", about="domain", what="A domain that the message links to is on SURBL.",
        advice="Look up each domain of the message and ask for removal there.", source="https://surbl.org/surbl-analysis",
        hosts=("multi.surbl.org", "surbl.org/surbl-analysis", "surbl.org/lists"), names=("surbl",),
    ),
    Sign(
        id="uribl", who="URIBL", kind="list", about="domain", what="A domain that the message links to is on URIBL.",
        advice="Look up each domain of the message and ask for removal there.", source="https://admin.uribl.com/",
        hosts=("multi.uribl.com", "black.uribl.com", "lookup.uribl.com", "admin.uribl.com"), names=("uribl",),
    ),
    Sign(
        id="senderscore", who="Validity Sender Score", kind="list", about="ip", what="The sending IP has a low Sender Score.",
        advice="Look at complaints and unknown users of the last 30 days; ask for removal at senderscore.org.",
        source="https://senderscore.org/act/blocklist-remover/",
        hosts=("bl.score.senderscore.com", "senderscore.org/rtbl", "senderscore.org/act/blocklist-remover",
        "senderscore.org/blacklistlookup"),
        names=("senderscore", "sender score"),
    ),
    Sign(
        id="cloudmark", who="Cloudmark", kind="list", about="ip",
        what="The sending IP has a bad reputation at Cloudmark Sender Intelligence.",
        advice="Ask for a reset at csi.cloudmark.com after the cause is mended. " + _DELIST,
        source="https://csi.cloudmark.com/en/reset/", hosts=("csi.cloudmark.com", "cloudmark.com/reset-request"),
        names=("cloudmark", "cloudmark csi"),
    ),
    Sign(
        id="proofpoint", who="Proofpoint", kind="list", about="ip",
        what="The sending IP has a bad reputation at Proofpoint Dynamic Reputation.",
        advice="Look it up and ask for removal at ipcheck.proofpoint.com. " + _DELIST, source="https://ipcheck.proofpoint.com/",
        hosts=("ipcheck.proofpoint.com", "support.proofpoint.com/dnsbl-lookup.cgi", "support.proofpoint.com/rbl-lookup.cgi"),
        names=("proofpoint",),
    ),
    Sign(
        id="talos", who="Cisco Talos", kind="list", about="ip", what="The sending IP has a poor reputation at Cisco Talos (SenderBase).",
        advice="Look it up at talosintelligence.com and open a reputation ticket there. " + _DELIST,
        source="https://talosintelligence.com/reputation_center",
        hosts=("senderbase.org", "talosintelligence.com", "ironport.com/senderbase"), names=("senderbase", "talos"),
    ),
    Sign(
        id="trend_micro", who="Trend Micro ERS", kind="list", about="ip",
        what="The sending IP is on a list of Trend Micro Email Reputation Services.",
        advice="Look it up and ask for removal there. " + _DELIST,
        source="https://servicecentral.trendmicro.com/en-us/ers/ip-lookup/",
        hosts=("ers.trendmicro.com", "mail-abuse.com", "servicecentral.trendmicro.com"), names=("trend micro rbl", "trendmicro rbl"),
    ),
    Sign(
        id="symantec", who="Symantec (Broadcom)", kind="list", about="ip",
        what="The sending IP has a bad reputation at Symantec Email Security.", advice="Ask for removal there. " + _DELIST,
        source="https://ipremoval.sms.symantec.com/", hosts=("ipremoval.sms.symantec.com",), names=("symantec zodiac",),
    ),
    Sign(
        id="mimecast", who="Mimecast", kind="provider", about="network",
        what="A receiver's Mimecast gateway refuses the sending network or message by its policy.",
        advice="Ask the receiver's postmaster to permit the sender; look up the code on Mimecast's page.",
        source="https://mimecastsupport.zendesk.com/hc/en-us/articles/34000709564691-Policies-Mimecast-SMTP-Error-Codes",
        hosts=("community.mimecast.com/docs", "community.mimecast.com/s/article", "mimecastsupport.zendesk.com"),
    ),
    # -- mailbox providers ---------------------------------------------------------------------------------------------
    Sign(
        id="gmail_authentication", who="Gmail", kind="provider", about="authentication",
        what="Gmail asks for SPF or DKIM, and for DMARC of senders of more than 5,000 messages a day.",
        advice="Mend SPF, DKIM and their alignment with the From domain before anything else is sent there.",
        source="https://support.google.com/a/answer/81126",
        hosts=("support.google.com/mail/?p=unauthenticatedsender", "support.google.com/mail/?p=unauthenticatedmessage"),
        codes=("5.7.26", "4.7.26", "4.7.27", "5.7.27", "4.7.30", "5.7.30", "4.7.31", "4.7.32"), beside=("gsmtp",),
    ),
    Sign(
        id="gmail_reputation", who="Gmail", kind="provider", about="ip",
        what="Gmail blocks or slows the sending IP or domain for its low reputation or for an unusual rate of unsolicited mail.",
        advice="Hold Gmail, then begin again with those who opened lately, and grow slowly. Look at Postmaster Tools: spam rate below "
        "0.1 %.",
        source="https://support.google.com/a/answer/3726730",
        hosts=("support.google.com/mail/?p=unsolicitedratelimiterror", "support.google.com/mail/?p=unsolicitediperror",
               "support.google.com/mail/?p=unsolicitedmessageerror", "support.google.com/mail/?p=blockedmessage"),
        codes=("4.7.28", "4.7.0", "5.7.28", "5.7.1"), beside=("gsmtp + reputation", "gsmtp + unsolicited", "gsmtp + unusual rate"),
    ),
    Sign(
        id="microsoft_banned_ip", who="Microsoft 365", kind="provider", about="ip",
        what="Exchange Online bans the sending IP (5.7.606 to 5.7.649, 5.7.511).",
        advice="Ask for removal at sender.office.com; it takes up to a day. For 5.7.511 write to delist@microsoft.com.",
        source="https://learn.microsoft.com/en-us/defender-office-365/external-senders-use-the-delist-portal-to-unblock-yourself",
        hosts=("sender.office.com",), codes=tuple(f"5.7.{n}" for n in range(606, 650)) + ("5.7.511",),
        beside=("banned sending ip", "banned sender"),
    ),
    Sign(
        id="microsoft_blocklist", who="Outlook.com", kind="provider", about="ip",
        what="The sending IP or its network is on Microsoft's own list for Outlook.com, Hotmail, Live and MSN (S3140, S3150).",
        advice="Hold Microsoft. Check the IP in SNDS, then ask for mitigation with the Outlook.com sender form; answer the first refusal.",
        source="https://sendersupport.olc.protection.outlook.com/pm/troubleshooting.aspx",
        codes=("s3140", "s3150", "as3140", "as3150", "sc-001", "sc-002", "sc-003", "sc-004", "dy-001", "dy-002", "ou-001", "ou-002"),
        beside=("outlook.com", "mail.live.com", "hotmail.com", "on our block list"),
    ),
    Sign(
        id="microsoft_rate", who="Outlook.com", kind="provider", about="volume",
        what="Microsoft slows the sending IP for its reputation or for how fast it sends.",
        advice="Slow down to Microsoft, and send first to those who opened lately.",
        source="https://sendersupport.olc.protection.outlook.com/pm/troubleshooting.aspx",
        codes=("s3113", "s3114", "s3115", "s775", "rp-001", "rp-002", "rp-003", "4.7.650", "4.7.651", "4.7.652"),
        beside=("outlook.com", "postmaster.live.com", "mail.live.com", "hotmail.com"),
    ),
    Sign(
        id="microsoft_authentication", who="Microsoft", kind="provider", about="authentication",
        what="The sending domain fails DMARC, or lacks what Outlook.com asks of high-volume senders.",
        advice="Mend SPF, DKIM and DMARC of the From domain before anything else is sent there.",
        source="https://learn.microsoft.com/en-us/exchange/mail-flow-best-practices/non-delivery-reports-in-exchange-online/"
        "non-delivery-reports-in-exchange-online",
        codes=("5.7.509", "5.7.515"), beside=("outlook.com", "access denied sending domain"),
    ),
    Sign(
        id="yahoo_deferred", who="Yahoo", kind="provider", about="volume",
        what="Yahoo (with AOL) defers the sending IP for unexpected volume or for complaints.",
        advice="Hold Yahoo for some hours and go on slowly with those who opened lately. Bring complaints below 0.3 %.",
        source="https://senders.yahooinc.com/smtp-error-codes/",
        codes=("tss01", "tss02", "tss03", "tss04", "tss05", "tss06", "tss07", "tss08", "tss09", "tss11", "tss12", "ts01", "ts02", "ts03",
        "ts04"),
        beside=("postmaster.yahooinc.com", "postmaster.verizonmedia.com", "postmaster.yahoo.com", "senders.yahooinc.com", "help.yahoo.com",
                "temporarily deferred", "permanently deferred"),
    ),
    Sign(
        id="yahoo_policy", who="Yahoo", kind="provider", about="content",
        what="Yahoo refuses the message by policy: its content, a link, a complaint history or missing authentication.",
        advice="Look at links and at DMARC of the From domain; send to the engaged only until it ends.",
        source="https://senders.yahooinc.com/smtp-error-codes/",
        hosts=("postmaster.yahooinc.com/error-codes", "postmaster.verizonmedia.com/error-codes", "senders.yahooinc.com/smtp-error-codes"),
        codes=("ph01", "bl21", "bl23", "554-5.7.9", "5.7.9"),
        beside=("postmaster.yahooinc.com", "postmaster.verizonmedia.com", "senders.yahooinc.com", "help.yahoo.com", "postmaster.yahoo.com"),
    ),
    Sign(
        id="apple", who="Apple", kind="provider", about="content",
        what="iCloud Mail refuses or defers by its local policy: reputation, links or volume.",
        advice="Check authentication, links and lists; send slower; then write to Apple's postmaster with the log lines.",
        source="https://support.apple.com/en-us/102322",
        hosts=("support.apple.com/en-us/ht204137", "support.apple.com/en-us/102322", "support.apple.com/ht204137"),
        codes=("cs01", "cs02", "hm07", "hm08"), beside=("local policy", "support.apple.com"),
    ),
    Sign(
        id="comcast", who="Comcast", kind="provider", about="ip",
        what="Comcast blocks (BL...) or slows (RL...) the sending IP, often by another's list.",
        advice="Look up the code on the page: it says whose list it is. Ask for removal there.",
        source="https://www.xfinity.com/support/articles/email-errors",
        hosts=("postmaster.comcast.net/smtp-error-codes.php", "postmaster.comcast.net/mail-error-codes"),
        codes=("bl000000", "bl000001", "bl000010", "bl000011", "bl000100", "bl000101", "bl000110", "bl000111", "rl000001", "rl000002",
               "rl000003", "es000001", "es000010"),
        beside=("comcast", "xfinity.com"),
    ),
    Sign(
        id="gmx", who="GMX / WEB.DE", kind="provider", about="ip",
        what="GMX, WEB.DE or mail.com refuse the sending IP: a list, its reverse DNS or its rate.",
        advice="Open the page that the answer names: it says which rule it was for this IP.",
        source="https://postmaster.gmx.net/en/error-messages",
        hosts=("postmaster.gmx.com/en/error-messages", "postmaster.gmx.net/en/error-messages", "postmaster.web.de/error-messages",
               "postmaster.1und1.de/en/error-messages", "postmaster.gmx.com/error-messages", "postmaster.gmx.net/error-messages",
               "postmaster.mail.com/en/error-messages", "postmaster.web.de/en/error-messages"),
    ),
    Sign(
        id="t_online", who="T-Online", kind="provider", about="ip",
        what="T-Online accepts mail of known servers only, or blocks the sending IP.",
        advice="Give the server a host name with an imprint at its domain, then write to tosa@rx.t-online.de.",
        source="https://postmaster.t-online.de/index.en.html", hosts=("postmaster.t-online.de",),
    ),
    Sign(
        id="orange", who="Orange", kind="provider", about="ip",
        what="Orange refuses or slows the sending IP (codes OFR...).",
        advice="Slow down to Orange; where Cloudmark is named as well, ask for a reset there.",
        source="https://postmaster.orange.fr/", hosts=("postmaster.orange.fr",),
        codes=("ofr004_104", "ofr004_105", "ofr004_106", "ofr005_105", "ofr006_102", "ofr006_103", "ofr_102", "ofr_103", "ofr_104",
        "ofr_105",
               "ofr_106", "ofr_506", "ofr_999"),
    ),
    Sign(
        id="att", who="AT&T", kind="provider", about="ip", what="AT&T's own list holds the sending IP.",
        advice="Write to abuse_rbl@abuse-att.net with the answer; domains that moved to Yahoo go by Yahoo's rules.",
        source="https://www.att.com/support/article/email-support/KM1010523/", codes=("attrbl",), beside=("dnsbl", "att.net", "error"),
    ),
    Sign(
        id="mail_ru", who="Mail.ru", kind="provider", about="content", what="Mail.ru takes the message or sender for spam.",
        advice="Look at Postmaster Mail.ru: complaints and authentication by day.", source="https://help.mail.ru/mail-help/postmaster/",
        hosts=("help.mail.ru/notspam-support", "help.mail.ru/mail-help/postmaster", "help.mail.ru/mail-support/rejected"),
    ),
    Sign(
        id="tencent", who="QQ Mail", kind="provider", about="volume", what="QQ Mail limits or blocks the sending IP.",
        advice="Slow down to QQ; the page in the answer has the form for appeals.",
        source="https://service.mail.qq.com/", hosts=("service.mail.qq.com",),
    ),
    Sign(
        id="netease", who="NetEase (163, 126)", kind="provider", about="content",
        what="NetEase refuses the message or sender (DT:SPM and the like).",
        advice="Open the page in the answer; slow down, and change what the message looks like.",
        source="https://mail.163.com/help/help_spam_16.htm", hosts=("mail.163.com/help/help_spam_16.htm", "mail.163.com/help"),
    ),
    Sign(
        id="spectrum", who="Spectrum (Charter)", kind="provider", about="volume",
        what="Spectrum refuses or slows by its usage policy (AUP#...).",
        advice="Look up the AUP code on the page; slow down where it is a rate.",
        source="https://www.spectrum.net/support/internet/understanding-email-error-codes",
        hosts=("spectrum.net/support/internet/understanding-email-error-codes", "charter.com/postmaster"),
    ),
    Sign(
        id="cox", who="Cox", kind="provider", about="ip", what="Cox blocks the sending IP (CXBL, CXSNDR ...).",
        advice="Look up the code on the page; mail boxes that moved to Yahoo go by Yahoo's rules.",
        source="https://www.cox.com/residential/support/email-error-codes.html",
        codes=("cxbl", "cxthrt", "cxmxrt", "cxdns", "cxsndr"), beside=("cox.net", "cox.com", "cox too many"),
    ),
    Sign(
        id="godaddy", who="GoDaddy", kind="provider", about="ip", what="GoDaddy's mail servers refuse the sending IP or its rate (IB...).",
        advice="Look up the IB code; ask for removal at unblock.secureserver.net.",
        source="https://www.godaddy.com/help/what-does-my-email-bounceback-mean-3568",
        hosts=("unblock.secureserver.net", "x.co/rblbounce", "x.co/rlbounce", "x.co/srbounce"),
    ),
)  # fmt: skip

BLOCKING = (
    "block", "blocked", "blocks", "blocking", "blocklist", "blocklisted", "blacklist", "blacklisted", "blacklists", "list", "listed",
    "listing",
    "rbl", "dnsbl", "denylist", "banned", "reputation", "rejected", "denied", "refused", "database", "zone", "lookup",
)  # fmt: skip
NEGATIONS = ("not", "no", "isnt", "never", "longer", "without")
_BREAKS = str.maketrans(dict.fromkeys('<>()[]{}"`,;|!\n\r\t\u00a0', " ") | {"'": None, "\u2019": None})
_SCHEME = re.compile(r"^[a-z]{3,5}:/{1,2}")


def named(text: str) -> list[Named]:
    """Return who is named in the text of a bounce, most specific first; an empty list where nobody surely is."""
    reading = _Reading(text)
    found: list[Named] = []
    for sign in SIGNS:
        mark = _mark(sign, reading)
        if mark and not any(other.sign.id.startswith(sign.id + "_") or other.sign.who == sign.who for other in found):
            found.append(Named(sign=sign, mark=mark))
    return found


class _Reading:
    """A text cut up: words, and hosts with their paths, without what stands in addresses."""

    def __init__(self, text: str) -> None:
        tokens = text[:text_chars_max].lower().translate(_BREAKS).split()[:tokens_max]
        self.words: list[str] = []
        self.hosts: list[str] = []
        for token in tokens:
            if "@" in token:
                continue
            bare = _SCHEME.sub("", token).strip(".:#*?=-")
            if bare != token.strip(".:#*?=-") or ("." in bare and any("a" <= char <= "z" for char in bare)):
                self.hosts.append(bare)
            self.words.append(bare)
        self.joined = f" {' '.join(self.words)} "


def _mark(sign: Sign, reading: _Reading) -> str:
    """Return what names the sign in a text, or ``""``."""
    for host in sign.hosts:
        if any(_is_host(seen, host) for seen in reading.hosts):
            return host
    for name in sign.names:
        if _near(name, reading.words):
            return name
    for code in sign.codes:
        if f" {code} " in reading.joined or f"-{code} " in reading.joined:
            if not sign.beside or any(_beside(mark, reading) for mark in sign.beside):
                return code
    return ""


def _beside(mark: str, reading: _Reading) -> bool:
    return all(f" {part}" in reading.joined or any(_is_host(seen, part) for seen in reading.hosts) for part in mark.split(" + "))


def _is_host(seen: str, wanted: str) -> bool:
    """Whether a host with its path is ``wanted`` or below: ``www.a.org/query/ip`` is below ``a.org/query``, ``nota.org`` not ``a.org``."""
    host, slash, path = seen.partition("/")
    host = host.partition(":")[0]
    wanted_host, wanted_slash, wanted_path = wanted.partition("/")
    if host != wanted_host and not host.endswith("." + wanted_host):
        return False
    return not wanted_slash or (bool(slash) and path.startswith(wanted_path))


def _near(name: str, words: list[str]) -> bool:
    """Whether a name stands near a word of blocking that is not denied."""
    parts = name.split()
    for at in range(len(words) - len(parts) + 1):
        if words[at : at + len(parts)] != parts:
            continue
        first, last = max(0, at - near_words), min(len(words), at + len(parts) + near_words)
        near = False
        for other in range(first, last):
            if at <= other < at + len(parts) or words[other] not in BLOCKING:
                continue
            if any(word in NEGATIONS for word in words[max(0, other - 2) : other]):
                # "Not listed in" takes back what else is said nearby.
                near = False
                break
            near = True
        if near:
            return True
    return False
