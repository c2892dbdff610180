"""Verify and read a vendor's webhook in a program of your own: sources need no server and no configuration file."""

import base64

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from midflight.sources import Refused, Request, load

# SendGrid keeps the private key and shows the public one, in base64.
private = ec.generate_private_key(ec.SECP256R1())
public = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

body = b'[{"email":"ada@example.com","event":"click","timestamp":1764000000,"sg_event_id":"1","sg_message_id":"m.1","campaign":"spring"}]'
signature = private.sign(b"1764000000" + body, ec.ECDSA(hashes.SHA256()))

source = load("sendgrid", {"secrets": [base64.b64encode(public).decode()]})
request = Request(
    headers={
        "x-twilio-email-event-webhook-timestamp": "1764000000",
        "x-twilio-email-event-webhook-signature": base64.b64encode(signature).decode(),
    },
    body=body,
    received_at_us=1764000001_000000,
)

source.verify(request)
for event in source.parse(request):
    print(event.kind, event.recipient, event.campaign, event.occurred_at)

try:
    source.verify(Request(headers=request.headers, body=body.replace(b"ada", b"eve")))
except Refused as refused:
    print(refused)
