"""Every channel keeps the folder's promises: its examples hold, its answers are read without trust, its settings are strict."""

from __future__ import annotations

import msgspec
import pytest
from shown import NOW_US, UGLY, examples, holds_answers, holds_call

from midflight.act.channels import REGISTRY, Answer
from midflight.act.channels.channel import EXAMPLE, OUTCOMES, SECOND, Channel, channel_of

EXAMPLES = examples(REGISTRY)


def example(name: str, number: int) -> tuple[Channel, dict]:
    found = REGISTRY.get(name).EXAMPLES[number]
    return channel_of(REGISTRY.get(name), found["settings"], name), found


@pytest.mark.parametrize("name", REGISTRY.names())
def test_every_channel_has_examples_and_words(name: str) -> None:
    """A channel says what it is, which source reads its webhooks, and shows what it sends and reads."""
    kind = REGISTRY.get(name)
    assert kind.label and kind.doc and kind.source and kind.EXAMPLES and kind.__doc__ and kind.batch_max >= 1


@pytest.mark.parametrize(("name", "number"), EXAMPLES)
def test_a_message_becomes_the_call(name: str, number: int) -> None:
    """The call is the one that the example shows, and everything that has to come back travels with it."""
    channel, found = example(name, number)
    call = channel.call(found["messages"], NOW_US)
    holds_call(found, call)
    assert "json" in found or "form" in found
    text = call.body.decode()
    for message in found["messages"]:
        for value in (message.to, message.intent, message.campaign, message.variant):
            assert value in text or value.replace("@", "%40") in text


@pytest.mark.parametrize(("name", "number"), EXAMPLES)
def test_an_answer_becomes_outcomes(name: str, number: int) -> None:
    """Each answer in the example means what the example says, for each message."""
    channel, found = example(name, number)
    holds_answers(found, found["messages"], channel.outcomes)


@pytest.mark.parametrize("name", REGISTRY.names())
@pytest.mark.parametrize("status", [200, 201, 202, 204, 302, 400, 401, 404, 408, 409, 413, 422, 429, 500, 502, 503])
def test_no_answer_is_trusted(name: str, status: int) -> None:
    """Whatever comes back, there is one outcome for each message, of a known kind; an unreadable 5xx is neither yes nor no."""
    kind = REGISTRY.get(name)
    channel = channel_of(kind, kind.EXAMPLES[0]["settings"], name)
    messages = [EXAMPLE, SECOND][: kind.batch_max]
    for body in UGLY:
        found = channel.outcomes(messages, Answer(status=status, body=body))
        assert [outcome.kind in OUTCOMES for outcome in found] == [True] * len(messages)
        assert all(outcome.detail.isprintable() or len(outcome.detail) <= 500 for outcome in found)
        if status >= 500 and status != 503:
            assert {outcome.kind for outcome in found} <= {"unknown"}
        if status in (302, 408):
            assert {outcome.kind for outcome in found} == {"unknown"}
        if status == 429:
            assert {outcome.kind for outcome in found} == {"later"}


@pytest.mark.parametrize("name", REGISTRY.names())
def test_settings_are_strict(name: str) -> None:
    """An unknown setting is refused with its name."""
    from midflight.kit.errors import ConfigError

    kind = REGISTRY.get(name)
    with pytest.raises(ConfigError, match="colour"):
        channel_of(kind, kind.EXAMPLES[0]["settings"] | {"colour": "red"}, name)


@pytest.mark.parametrize("name", REGISTRY.names())
def test_text_beyond_ascii_and_markup_survive(name: str) -> None:
    """Names and subjects in any script, quotes and percent signs arrive as they are, and a message without HTML or names goes too."""
    kind = REGISTRY.get(name)
    channel = channel_of(kind, kind.EXAMPLES[0]["settings"], name)
    odd = msgspec.structs.replace(
        EXAMPLE, to_name='Zoë "Z" <z>, Ü', from_name="Ταυ & Söhne", subject="50 % auf {{ alles }} – 日本 %recipient%"
    )
    plain = msgspec.structs.replace(EXAMPLE, html="", to_name="", from_name="", reply_to="", headers={})
    for message in (odd, plain):
        call = channel.call([message], NOW_US)
        assert call.body
        call.body.decode("utf-8")
