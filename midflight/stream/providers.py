"""The mailbox provider of a recipient, from the domain: who filters, throttles and bounces as one."""

from __future__ import annotations

_PROVIDERS = {
    "Gmail": "gmail.com googlemail.com",
    "Microsoft": "outlook.com hotmail.com live.com msn.com outlook.de outlook.fr hotmail.co.uk hotmail.fr hotmail.de hotmail.it hotmail.es "
    "live.co.uk live.fr live.nl live.de live.it live.ca live.com.au outlook.es outlook.it outlook.co.uk passport.com windowslive.com",
    "Yahoo": "yahoo.com ymail.com rocketmail.com aol.com aim.com yahoo.co.uk yahoo.fr yahoo.de yahoo.it yahoo.es yahoo.ca "
    "yahoo.in yahoo.co.in "
    "yahoo.com.br yahoo.com.au yahoo.com.mx yahoo.com.ar myyahoo.com verizon.net netscape.net aol.de aol.co.uk",
    "Apple": "icloud.com me.com mac.com",
    "GMX / WEB.DE": "gmx.de gmx.net gmx.at gmx.ch gmx.com web.de mail.com email.de",
    "T-Online": "t-online.de magenta.de",
    "Freenet": "freenet.de",
    "Orange": "orange.fr wanadoo.fr voila.fr",
    "Free": "free.fr",
    "SFR": "sfr.fr neuf.fr club-internet.fr",
    "Laposte": "laposte.net",
    "Libero": "libero.it virgilio.it iol.it inwind.it",
    "Mail.ru": "mail.ru bk.ru inbox.ru list.ru internet.ru",
    "Yandex": "yandex.ru ya.ru yandex.com narod.ru",
    "Proton": "proton.me protonmail.com pm.me protonmail.ch",
    "Comcast": "comcast.net xfinity.com",
    "AT&T": "att.net sbcglobal.net bellsouth.net pacbell.net ameritech.net swbell.net",
    "Charter": "charter.net spectrum.net rr.com twc.com",
    "Cox": "cox.net",
    "BT": "btinternet.com btopenworld.com",
    "Virgin Media": "virginmedia.com ntlworld.com blueyonder.co.uk virgin.net",
    "Sky": "sky.com",
    "Telstra": "bigpond.com bigpond.net.au telstra.com",
    "Ziggo / KPN": "ziggo.nl kpnmail.nl planet.nl home.nl hetnet.nl",
    "Telenet": "telenet.be skynet.be",
    "Seznam": "seznam.cz email.cz post.cz",
    "WP / Onet / Interia": "wp.pl o2.pl onet.pl op.pl interia.pl tlen.pl gazeta.pl",
    "UOL / BOL": "uol.com.br bol.com.br terra.com.br ig.com.br",
    "QQ": "qq.com foxmail.com",
    "NetEase": "163.com 126.com yeah.net",
    "Naver": "naver.com",
    "Daum": "daum.net hanmail.net",
    "Docomo": "docomo.ne.jp",
    "KDDI": "ezweb.ne.jp au.com",
    "SoftBank": "softbank.ne.jp i.softbank.jp",
    "Rediffmail": "rediffmail.com",
    "Zoho": "zoho.com zohomail.com",
    "Fastmail": "fastmail.com fastmail.fm",
}
PROVIDERS = ("", "Other", *_PROVIDERS)
PROVIDER_DOMAINS = {domain: PROVIDERS.index(name) for name, domains in _PROVIDERS.items() for domain in domains.split()}
OTHER = 1


def providers_of(recipient_keys: list[str]) -> list[int]:
    """Return an index into PROVIDERS per key: 0 without a domain, 1 (Other) for a domain of its own."""
    by_domain = PROVIDER_DOMAINS
    return [by_domain.get(key[key.rfind("@") + 1 :], OTHER) if "@" in key else 0 for key in recipient_keys]
