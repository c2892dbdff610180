"""Amazon SES: event publishing as Firehose leaves it in S3, with or without the envelope of SNS."""

from __future__ import annotations

import msgspec

from ..sources import Request
from .export import Export


class SES(Export):
    label = "Amazon SES"
    source = "ses"

    @classmethod
    def fits_object(cls, item: dict) -> bool:
        return bool({"eventType", "notificationType"} & item.keys()) or (item.get("Type") == "Notification" and "TopicArn" in item)

    def object(self, item: dict) -> list:
        """Read an event. Firehose leaves out the id that SNS gives, so such an event is the webhook's only by its content."""
        return self.reads.items(Request(body=msgspec.json.encode(item)))


PLUGIN = SES
EXAMPLES = SES.EXAMPLES = [
    {
        "title": "What Firehose leaves in S3",
        "file": (
            '{"eventType": "Delivery", "mail": {"messageId": "0100019ab-example", "destination": ["ada@example.com"],'
            ' "tags": {"campaign": ["spring"]}}, "delivery": {"timestamp": "2025-11-24T16:00:00.250Z", "recipients": ["ada@example.com"],'
            ' "smtpResponse": "250 2.6.0 OK"}}\n'
        ),
        "events": [
            {
                "kind": "delivered",
                "recipient": "ada@example.com",
                "message_id": "0100019ab-example",
                "campaign": "spring",
                "detail": "250 2.6.0 OK",
            }
        ],
    }
]
