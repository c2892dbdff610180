"""Named tags as Amazon SES has them, and Resend, which is built on it: few characters are allowed, so the rest goes by another way."""

from __future__ import annotations

import json
import re

# https://docs.aws.amazon.com/ses/latest/APIReference-V2/API_MessageTag.html, and the same words in Resend's reference of `tags`.
_FITS = re.compile(r"[A-Za-z0-9_-]{1,256}", re.ASCII)
header_chars_max = 870  # of the value of a header (SES's API_MessageHeader)

METADATA_HEADER = "X-Metadata"


def carried(custom: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tags and the headers that carry these values.

    What fits into a tag is a tag. Anything else (`Frühling 2026`; a propensity has a point) stands unchanged in the header ``X-Metadata``,
    as JSON with ASCII only. The sources read both without being told, and no value is in both. What is too long for either is left out:
    the intent still comes back, and says which message it was.
    """
    tags = {name: value for name, value in custom.items() if _FITS.fullmatch(value)}
    rest, line = {}, ""
    for name, value in custom.items():
        if name not in tags and value:
            longer = json.dumps(rest | {name: value}, separators=(",", ":"))
            if len(longer) <= header_chars_max:
                rest, line = rest | {name: value}, longer
    return tags, {METADATA_HEADER: line} if line else {}
