"""The configuration file: what is wrong stops the start with a line that says where, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.config import Config, config_from, load_config
from midflight.kit.errors import ConfigError

POSTMARK = "{kind: postmark, basic_auth: ['u:p']}"
WRONG = {
    "dataa: x": ("$.dataa", "Did you mean `data`?"),
    "door: {prot: 1}": ("$.door.prot", "Did you mean `port`?"),
    "door: {port: 70000}": ("$.door.port", "65535"),
    "console: {port: -1}": ("$.console.port", "0"),
    "door: {port: 8401}": ("$.console.port", "cannot share"),
    "door: {connections_max: 0}": ("$.door.connections_max", "1"),
    "door: {slow_client_s: -1}": ("$.door.slow_client_s", "0"),
    "door: {public_url: hooks.example.com}": ("$.door.public_url", "https://"),
    "door: {public_url: 'https://hooks.example.com/in'}": ("$.door.public_url", "https://"),
    "attribution: {click_window_minutes: 0}": ("$.attribution.click_window_minutes", "1"),
    "retention: {log_days: 0}": ("$.retention.log_days", "1"),
    "retention: {dedup_days: 3}": ("$.retention.dedup_days", "35"),
    "attributes: [{name: age, bands: [40, 25]}]": ("$.attributes[0].bands", "ascend"),
    "attributes: ['']": ("$.attributes[0]", "name"),
    "attributes: [a, a]": ("$.attributes", "twice"),
    f"sources:\n  a: {POSTMARK}\n  b: {POSTMARK}\n  a: {POSTMARK}": ("$.sources.a", "line 4"),
    "door:\n  port: 1\ndata: x\ndoor:\n  host: '::1'": ("$.door", "line 4"),
    "sources: {a: {kind: postmark, basic_auth: ['env:MIDFLIGHT_TEST_NOBODY_SET']}}": ("$.sources.a.basic_auth[0]", "NOBODY_SET"),
    "false": ("", "object"),
    "- a": ("", "object"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_setting_stops_the_start(text: str, tmp_path: Path) -> None:
    """The line names the file or the place, and says what would be right."""
    path = tmp_path / "midflight.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    for said in WRONG[text]:
        assert said in raised.value.text()


def test_right_settings_are_taken(tmp_path: Path) -> None:
    """The control of the list above: the same settings, put right, are read; so are anchors and an empty file."""
    path = tmp_path / "midflight.yaml"
    path.write_text(
        "door: {port: 8500, public_url: 'https://hooks.example.com/', slow_client_s: 5}\nretention: {log_days: 1}\n"
        f"attributes: [{{name: age, bands: [25, 40]}}]\nsources:\n  a: &one {POSTMARK}\n  b: *one\n"
    )
    config = load_config(path)
    assert (config.door.port, config.door.slow_client_s, config.retention.log_days) == (8500, 5.0, 1)
    assert config.sources["a"] == config.sources["b"]
    path.write_text("")
    assert load_config(path) == Config()


def test_a_named_file_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt --config must not start a system with default settings; only an unnamed file need not exist."""
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config()
    monkeypatch.setenv("MIDFLIGHT_CONFIG", "midfligth.yaml")
    with pytest.raises(ConfigError, match=r"No configuration at midfligth\.yaml"):
        load_config()
    monkeypatch.setenv("MIDFLIGHT_CONFIG", str(tmp_path))
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config()


def test_settings_given_as_data_are_checked_too() -> None:
    """What tests and the sandbox build in memory goes through the same checks."""
    with pytest.raises(ConfigError, match="Did you mean `host`"):
        config_from({"console": {"hots": "x"}})
