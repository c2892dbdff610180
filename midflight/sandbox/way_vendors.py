"""The services behind the ways out: what each asks as credentials, does, and says when something is wrong.

One service is one class; the page that its words come from is named in the way's own file (``midflight/act/ways/``). Those that promise
that twice is once keep that promise here; the others do everything as often as they are asked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from ..act.ways.web_push import base64url, decrypted, point
from .api_vendors import Asked, Refusal, Reply, as_list, as_object, at, json_object, json_reply, same
from .ways import Effect, Service

account_sid = "AC" + "0123456789abcdef" * 2
tolerance_s = 300


def _form(asked: Asked) -> dict[str, str]:
    return dict(parse_qsl(asked.body.decode("utf-8", "replace"), keep_blank_values=True))


def text_reply(status: int, said: str) -> Reply:
    return Reply(status, said.encode(), (("content-type", "text/plain; charset=utf-8"),))


class SlackHook(Service):
    """An incoming webhook of Slack. It knows no keys: what is said twice stands there twice."""

    name = "slack"
    path = "/services/T0/B0/secret"
    SAID = {400: "invalid_payload", 401: "invalid_token", 404: "no_service", 409: "conflict", 429: "rate_limited", 500: "rollup_error"}

    def owns(self, method: str, path: str) -> bool:
        return method == "POST" and path.startswith("/services/")

    def error(self, status: int) -> Reply:
        return text_reply(status, self.SAID.get(status, "error"))

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        if asked.path != self.path:
            raise Refusal(self.error(404))
        body = json_object(asked.body)
        text = at(body, "text")
        if not isinstance(text, str) or not text:
            raise Refusal(text_reply(400, "no_text" if body is not None else "invalid_payload"))
        if any(not 0 < len(at(block, "text", "text") or "x") <= 3000 for block in as_list(at(body, "blocks"))):
            raise Refusal(text_reply(400, "invalid_blocks"))
        return text_reply(200, "ok"), [Effect(self.name, "", text)]


class TeamsFlow(Service):
    """A workflow of Teams: 202, and the card is posted behind it."""

    name = "teams"
    path = "/workflows/x"
    body_bytes_max = 28 * 1024

    def owns(self, method: str, path: str) -> bool:
        return method == "POST" and path.startswith("/workflows/")

    def error(self, status: int) -> Reply:
        return json_reply(status, {"error": {"code": "Error", "message": f"status {status}"}})

    def error_in_200(self) -> Reply:
        return text_reply(
            200, "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429 with ContextId x"
        )

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        if parse_qs(asked.query).get("sig") != ["secret"]:
            raise Refusal(self.error(401))
        cards = as_list(at(json_object(asked.body), "attachments"))
        if len(asked.body) > self.body_bytes_max:
            raise Refusal(self.error(413))
        if len(cards) != 1 or at(cards[0], "content", "type") != "AdaptiveCard":
            raise Refusal(self.error(400))
        return Reply(202), [Effect(self.name, "", msgspec.json.encode(at(cards[0], "content", "body")).decode())]


class Twilio(Service):
    """Twilio's messages. The status callback's URL is the only place where a message's sender can be told."""

    name = "sms_twilio"
    auth_token = "sandbox"
    SAID = {400: (21211, "Invalid 'To' Phone Number"), 401: (20003, "Authenticate"), 404: (20404, "Not found"), 409: (20409, "Conflict")}
    SAID |= {429: (20429, "Too Many Requests"), 500: (20500, "Internal server error"), 503: (20503, "Service unavailable")}

    def __init__(self) -> None:
        self.messages: dict[str, dict[str, str]] = {}

    def owns(self, method: str, path: str) -> bool:
        return method == "POST" and path == f"/2010-04-01/Accounts/{account_sid}/Messages.json"

    def error(self, status: int) -> Reply:
        code, said = self.SAID[status]
        return json_reply(
            status, {"code": code, "message": said, "more_info": f"https://www.twilio.com/docs/errors/{code}", "status": status}
        )

    def error_in_200(self) -> Reply:
        return json_reply(200, {"sid": "SM0", "status": "failed", "error_code": 30001, "error_message": "Queue overflow"})

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        wanted = "Basic " + base64.b64encode(f"{account_sid}:{self.auth_token}".encode()).decode()
        if not same(asked.headers.get("authorization", ""), wanted):
            raise Refusal(self.error(401))
        form = _form(asked)
        if not re.fullmatch(r"\+[1-9]\d{6,14}", form.get("To", "")) or not 0 < len(form.get("Body", "")) <= 1600:
            raise Refusal(self.error(400))
        sid = f"SM{len(self.messages):032x}"
        self.messages[sid] = form
        action = parse_qs(urlsplit(form.get("StatusCallback", "")).query).get("action", [""])[0]
        reply = json_reply(201, {"sid": sid, "status": "queued", "to": form["To"], "error_code": None})
        return reply, [Effect(self.name, action, f"{form['To']} {form['Body']}")]

    def status_callback(self, sid: str, status: str) -> tuple[str, dict[str, str], str]:
        """Return a report as Twilio makes it: the URL, the form and the signature."""
        url = self.messages[sid]["StatusCallback"]
        form = {"MessageSid": sid, "MessageStatus": status, "AccountSid": account_sid, "To": self.messages[sid]["To"]}
        form |= {"ErrorCode": "30003"} if status in ("failed", "undelivered") else {}
        content = url + "".join(name + form[name] for name in sorted(form))
        signature = hmac.new(self.auth_token.encode(), content.encode(), hashlib.sha1).digest()
        return url, form, base64.b64encode(signature).decode()


class Browser:
    """A browser that has subscribed: its keys, and what it can read."""

    def __init__(self, number: int) -> None:
        self.key = ec.derive_private_key(number + 12345, ec.SECP256R1())
        self.auth = hashlib.sha256(b"auth %d" % number).digest()[:16]

    def subscription(self, url: str, number: int) -> dict[str, str]:
        public = base64url(point(self.key.public_key()))
        return {"endpoint": f"{url}/push/{number}", "p256dh": public, "auth": base64url(self.auth)}


class PushService(Service):
    """A push service with its browsers: it checks VAPID and the headers, and what a browser shows is what it can decrypt."""

    name = "web_push"
    denied = 403
    body_bytes_max = 4096

    def __init__(self, now_s: Callable[[], float], browsers: int = 50) -> None:
        self.now_s = now_s
        self.browsers = {number: Browser(number) for number in range(browsers)}
        self.gone: set[int] = set()
        self.origin = ""

    def owns(self, method: str, path: str) -> bool:
        return method == "POST" and path.startswith("/push/")

    def error(self, status: int) -> Reply:
        return json_reply(status, {"code": status, "errno": 100, "error": f"status {status}"})

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        number = int(asked.path.rpartition("/")[2]) if asked.path.rpartition("/")[2].isdigit() else -1
        if number not in self.browsers:
            raise Refusal(self.error(404))
        if number in self.gone:
            raise Refusal(self.error(410))
        self._check_vapid(asked)
        if not asked.headers.get("ttl", "").isdigit() or asked.headers.get("content-encoding") != "aes128gcm":
            raise Refusal(self.error(400))
        if len(asked.body) > self.body_bytes_max:
            raise Refusal(self.error(413))
        browser = self.browsers[number]
        try:
            shown = msgspec.json.decode(decrypted(asked.body, browser.key, browser.auth))
        except (ValueError, IndexError):
            # The service cannot read it and takes it; the browser shows nothing.
            return Reply(201, b"", (("location", f"{self.origin}/m/x"),)), []
        return Reply(201, b"", (("location", f"{self.origin}/m/{shown['id']}"),)), [Effect(self.name, shown["id"], f"{number} {shown}")]

    def _check_vapid(self, asked: Asked) -> None:
        found = re.fullmatch(r"vapid t=([\w-]+)\.([\w-]+)\.([\w-]+), k=([\w-]+)", asked.headers.get("authorization", ""))
        if not found:
            raise Refusal(self.error(401))
        head, claims, signature, key = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in found.groups())
        der = utils.encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
            public.verify(der, f"{found[1]}.{found[2]}".encode(), ec.ECDSA(hashes.SHA256()))
            said = msgspec.json.decode(claims)
            right = msgspec.json.decode(head)["alg"] == "ES256" and said["aud"] == self.origin
            right = right and 0 < said["exp"] - self.now_s() <= 24 * 3600 and said["sub"].startswith(("mailto:", "https:"))
        except (InvalidSignature, ValueError, KeyError):
            right = False
        if not right:
            raise Refusal(self.error(403))


class Receiver(Service):
    """A service of one's own that receives webhooks as in Standard Webhooks; ``dedups`` is whether it knows an id that comes again."""

    name = "webhook"

    def __init__(self, secret: bytes, now_s: Callable[[], float], *, dedups: bool = True) -> None:
        self.secret, self.now_s, self.dedups = secret, now_s, dedups
        self.seen: set[str] = set()

    def owns(self, method: str, path: str) -> bool:
        return method == "POST" and path == "/hook"

    def error(self, status: int) -> Reply:
        return json_reply(status, {"error": status})

    def error_in_200(self) -> Reply:
        # To Standard Webhooks 200 is yes, whatever stands inside: nobody can tell this from having been heard.
        return self.error(500)

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        webhook_id, at_s = asked.headers.get("webhook-id", ""), asked.headers.get("webhook-timestamp", "")
        content = f"{webhook_id}.{at_s}.".encode() + asked.body
        wanted = "v1," + base64.b64encode(hmac.new(self.secret, content, hashlib.sha256).digest()).decode()
        signed = any(same(given, wanted) for given in asked.headers.get("webhook-signature", "").split())
        if not signed or not at_s.isdigit() or abs(int(at_s) - self.now_s()) > tolerance_s:
            raise Refusal(self.error(401))
        if self.dedups and webhook_id in self.seen:
            return Reply(200), []
        self.seen.add(webhook_id)
        return Reply(200), [Effect(self.name, webhook_id, f"{webhook_id} {asked.body.decode()}")]


_HASH = re.compile(r"[0-9a-f]{64}")


class Members:
    """Audiences as sets. Only what changes membership is an effect."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.audiences: dict[str, set[str]] = {}
        self.changes = 0

    def change(self, audience: str, members: list[str], add: bool) -> list[Effect]:
        there = self.audiences.setdefault(audience, set())
        changed = [member for member in members if (member in there) != add]
        (there.update if add else there.difference_update)(changed)
        effects = []
        for member in changed:
            self.changes += 1
            effects.append(Effect(self.name, "", f"{audience} {'add' if add else 'remove'} {member} {self.changes}"))
        return effects


class Meta(Service):
    """Users of custom audiences. Errors are 400 with a code."""

    name = "meta_audience"
    token = "EAAsandbox"
    denied = 400
    SAID = {
        400: (100, "Invalid parameter"), 401: (190, "Error validating access token: Session has expired"), 409: (100, "Conflict"),
        429: (80003, "There have been too many calls to this ad-account"), 500: (2, "Service temporarily unavailable"),
        503: (2, "Service temporarily unavailable"),
    }  # fmt: skip

    def __init__(self) -> None:
        self.members = Members(self.name)
        self.expired_calls = 0
        self.poison: set[str] = set()

    def owns(self, method: str, path: str) -> bool:
        return method in ("POST", "DELETE") and re.fullmatch(r"/v\d+\.\d+/\d+/users", path) is not None

    def error(self, status: int) -> Reply:
        code, said = self.SAID[401 if status == self.denied and self.expired_calls else status]
        self.expired_calls = 0
        return json_reply(status, {"error": {"message": said, "type": "OAuthException", "code": code, "fbtrace_id": "x"}})

    def error_in_200(self) -> Reply:
        return json_reply(200, {"error": {"message": "There have been too many calls", "code": 80003}})

    def expire(self) -> None:
        self.expired_calls = 1

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        form = _form(asked)
        if not same(form.get("access_token", ""), self.token):
            self.expire()
            raise Refusal(self.error(400))
        payload = as_object(json_object(form.get("payload", "").encode()))
        rows = as_list(payload.get("data"))
        if payload.get("schema") != ["EMAIL", "PHONE"] or not 0 < len(rows) <= 10_000 or any(len(as_list(row)) != 2 for row in rows):
            raise Refusal(self.error(400))
        if self.poison & {row[0] for row in rows}:
            raise Refusal(self.error(400))
        good = [row[0] for row in rows if _HASH.fullmatch(str(row[0]))]
        audience = asked.path.split("/")[2]
        effects = self.members.change(audience, good, asked.method == "POST")
        said = {"audience_id": audience, "session_id": "77", "num_received": len(rows), "num_invalid_entries": len(rows) - len(good)}
        return json_reply(200, said | {"invalid_entry_samples": {}}), effects


class Tokens:
    """The token endpoint of a service: each token is good until it is made to expire."""

    def __init__(self, form: dict[str, str], more: dict[str, object]) -> None:
        self.form, self.more = form, more
        self.issued = 0
        self.good = ""

    def issue(self, asked: Asked) -> Reply:
        if _form(asked) != self.form:
            return json_reply(400, {"error": "invalid_grant", "error_description": "Bad Asked"})
        self.issued += 1
        self.good = f"token-{self.issued}-" + "x" * 1200
        return json_reply(200, {"access_token": self.good, "token_type": "Bearer"} | self.more)

    def allows(self, asked: Asked) -> bool:
        return bool(self.good) and same(asked.headers.get("authorization", ""), f"Bearer {self.good}")


class Google(Service):
    """The Data Manager API, and Google's token endpoint."""

    name = "google_audience"
    SAID = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 409: "ABORTED", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}

    def __init__(self) -> None:
        self.members = Members(self.name)
        form = {"grant_type": "refresh_token", "refresh_token": "r", "client_id": "c", "client_secret": "s"}
        self.tokens = Tokens(form, {"expires_in": 3599, "scope": "https://www.googleapis.com/auth/datamanager"})

    def owns(self, method: str, path: str) -> bool:
        return method == "POST" and path in ("/token", "/v1/audienceMembers:ingest", "/v1/audienceMembers:remove")

    def error(self, status: int) -> Reply:
        return json_reply(status, {"error": {"code": status, "message": f"it is {self.SAID[status]}", "status": self.SAID[status]}})

    def expire(self) -> None:
        self.tokens.good = ""

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        if asked.path == "/token":
            return self.tokens.issue(asked), []
        if not self.tokens.allows(asked):
            raise Refusal(self.error(401))
        body = as_object(json_object(asked.body))
        to, members = as_list(body.get("destinations")), as_list(body.get("audienceMembers"))
        hashes_ = [at(as_list(at(m, "userData", "userIdentifiers"))[0], "emailAddress") for m in members]
        adds = asked.path.endswith(":ingest")
        terms = at(body, "termsOfService", "customerMatchTermsOfServiceStatus") == "ACCEPTED" or not adds
        account = at(to[0], "operatingAccount", "accountId") if len(to) == 1 else None
        if account != "1112223333" or body.get("encoding") != "HEX" or not terms or not 0 < len(members) <= 10_000:
            raise Refusal(self.error(400))
        if not all(isinstance(found, str) and _HASH.fullmatch(found) for found in hashes_):
            raise Refusal(self.error(400))
        effects = self.members.change(str(at(to[0], "productDestinationId")), hashes_, adds)
        return json_reply(200, {"requestId": f"q{self.members.changes}"}), effects


class HubSpotTasks(Service):
    """Tasks of HubSpot; a property with unique values refuses the second with 409."""

    name = "crm_task"
    token = "pat-sandbox"
    path = "/crm/objects/2026-03/tasks"
    unique = "midflight_id"

    def __init__(self) -> None:
        self.tasks: dict[str, dict] = {}
        self.made = 0

    def owns(self, method: str, path: str) -> bool:
        return method in ("POST", "DELETE") and path.startswith(self.path)

    def error(self, status: int, said: str = "") -> Reply:
        return json_reply(status, {"status": "error", "message": said or f"status {status}", "category": "X", "correlationId": "y"})

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        if not same(asked.headers.get("authorization", ""), f"Bearer {self.token}"):
            raise Refusal(self.error(401, "Authentication credentials not found"))
        if asked.method == "DELETE":
            return self._delete(unquote(asked.path.rpartition("/")[2]), f"idProperty={self.unique}" in asked.query)
        properties = as_object(at(json_object(asked.body), "properties"))
        if not properties.get("hs_timestamp") or not properties.get("hs_task_subject"):
            raise Refusal(self.error(400, "Property values were not valid"))
        key = str(properties.get(self.unique, ""))
        there = next((task for task, had in self.tasks.items() if key and had.get(self.unique) == key), "")
        if there:
            raise Refusal(self.error(409, f"A task with {self.unique} {key} already exists. Existing ID: {there}"))
        self.made += 1
        task = str(500 + self.made)
        self.tasks[task] = properties
        return json_reply(201, {"id": task, "properties": properties}), [Effect(self.name, key, str(properties["hs_task_subject"]))]

    def _delete(self, task: str, by_key: bool) -> tuple[Reply, list[Effect]]:
        if by_key:
            task = next((found for found, had in self.tasks.items() if had.get(self.unique) == task), "")
        # Deleting what is not there succeeds as well.
        return Reply(204), [Effect(self.name, "", f"deleted {task}")] if self.tasks.pop(task, None) else []


class SalesforceTasks(Service):
    """Tasks of Salesforce: upsert by external id, and sessions that expire."""

    name = "crm_task"
    path = "/services/data/v61.0/sobjects/Task"
    external = "Midflight_Id__c"
    SAID = {
        400: "REQUIRED_FIELD_MISSING", 401: "INVALID_SESSION_ID", 404: "NOT_FOUND", 409: "UNABLE_TO_LOCK_ROW",
        429: "REQUEST_LIMIT_EXCEEDED", 500: "UNKNOWN_EXCEPTION", 503: "SERVER_UNAVAILABLE",
    }  # fmt: skip

    def __init__(self) -> None:
        self.tasks: dict[str, dict] = {}
        self.made = 0
        form = {"grant_type": "client_credentials", "client_id": "c", "client_secret": "s"}
        self.tokens = Tokens(form, {"instance_url": "https://shop.my.salesforce.com", "issued_at": "1"})

    def owns(self, method: str, path: str) -> bool:
        return path == "/services/oauth2/token" or (method in ("POST", "PATCH", "DELETE") and path.startswith(self.path))

    def error(self, status: int) -> Reply:
        return json_reply(status, [{"errorCode": self.SAID[status], "message": f"it is {self.SAID[status]}"}])

    def error_in_200(self) -> Reply:
        return json_reply(200, {"id": None, "success": False, "errors": [{"statusCode": "UNABLE_TO_LOCK_ROW", "message": "busy"}]})

    def expire(self) -> None:
        self.tokens.good = ""

    def take(self, asked: Asked) -> tuple[Reply, list[Effect]]:
        if asked.path == "/services/oauth2/token":
            return self.tokens.issue(asked), []
        if not self.tokens.allows(asked):
            raise Refusal(self.error(401))
        rest = [unquote(part) for part in asked.path.removeprefix(self.path).split("/") if part]
        key = rest[1] if len(rest) == 2 and rest[0] == self.external else ""
        there = next((task for task, had in self.tasks.items() if key and had.get(self.external) == key), "")
        if asked.method == "DELETE":
            gone = self.tasks.pop(there or rest[0], None)
            if gone is None:
                raise Refusal(self.error(404))
            return Reply(204), [Effect(self.name, "", f"deleted {there or rest[0]}")]
        body = json_object(asked.body)
        if not body or not body.get("Subject"):
            raise Refusal(self.error(400))
        if there:
            return json_reply(200, {"id": there, "success": True, "errors": [], "created": False}), []
        self.made += 1
        task = f"00T{self.made:012d}"
        self.tasks[task] = body | ({self.external: key} if key else {})
        reply = json_reply(201, {"id": task, "success": True, "errors": [], "created": True})
        return reply, [Effect(self.name, key, str(body["Subject"]))]


def secret_bytes(secret: str) -> bytes:
    """Return the bytes of a secret ``whsec_...``."""
    try:
        return base64.b64decode(secret.removeprefix("whsec_"))
    except binascii.Error:
        return b""
