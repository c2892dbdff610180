"""The configuration file `midflight.yaml`, checked strictly; a wrong one stops the start and says where it is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from .kit.errors import ConfigError, nearest

attributes_max = 7  # one byte each in a cell's key


class Door(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where webhooks come in. ``public_url`` is how vendors reach it; Mandrill signs it, and the console shows it to copy."""

    host: str = "127.0.0.1"  # address to listen on; a proxy with TLS stands in front of it
    port: int = 8400  # port to listen on
    public_url: str = ""  # `https://hooks.example.com`, without a path
    body_bytes_max: int = 5 * 1024 * 1024  # larger requests get 413
    inflated_bytes_max: int = 20 * 1024 * 1024  # the same, for what a compressed body becomes
    events_max: int = 10_000  # more events in one request get 413
    event_bytes_max: int = 256 * 1024  # a larger single event gets 413
    connections_max: int = 2_000  # open connections at a time
    slow_client_s: float = 10.0  # a request that has not arrived by then is cut off
    waiting_bytes_max: int = 64 * 1024 * 1024  # bodies waiting to be stored; beyond it new ones get 429


class Console(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where people and programs look. Users and tokens are made with `midflight user` and `midflight token`."""

    host: str = "127.0.0.1"  # address to listen on; a proxy with TLS stands in front of it
    port: int = 8401  # port to listen on


class Attribution(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A conversion belongs to the last human click of its recipient at most this long before it."""

    click_window_minutes: int = 7 * 24 * 60  # 7 days


class Attribute(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A recipient attribute that is a dimension of every number: its values, or numbers cut into bands.

    ``bands: [25, 40, 60]`` makes ``<25``, ``25-39``, ``40-59``, ``60+`` of a number.
    """

    name: str  # what the dimension is called
    trait: str = ""  # the trait it is read from; the name, where none is given
    bands: list[float] = []  # ascending edges, for numbers


class Retention(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How long things are kept. The log is the truth: what it loses cannot be rebuilt."""

    log_days: int = 400  # accepted requests, byte for byte
    dedup_days: int = 40  # how long a repeated event is known as one; at least 35
    history_days: int = 3650  # one row an event, for `midflight sql`


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All settings, each with a default that suits one machine."""

    data: str = "data"  # folder of everything Midflight stores
    door: Door = msgspec.field(default_factory=Door)
    console: Console = msgspec.field(default_factory=Console)
    attribution: Attribution = msgspec.field(default_factory=Attribution)
    retention: Retention = msgspec.field(default_factory=Retention)
    attributes: list[str | Attribute] = []  # recipient attributes that are dimensions: names, or mappings as below; at most 7
    # name -> {kind: sendgrid, ...that vendor's settings}
    sources: dict[str, dict] = {}
    shards: int = 1  # parts the recipients are divided into, 1 to 64; the numbers are the same for any

    @property
    def folder(self) -> Path:
        return Path(self.data)

    def dimensions(self) -> list[Attribute]:
        """Return the attributes that are dimensions, in their order in the cell's key."""
        return [Attribute(name=a, trait=a) if isinstance(a, str) else a for a in self.attributes]


def load_config(path: str | Path | None = None) -> Config:
    """Read and check a configuration file; without one, the defaults. Raises ConfigError.

    Secrets written as ``env:NAME`` or ``file:PATH`` are read here, so that the file itself can be shown to anybody.
    """
    if path is None:
        path = os.environ.get("MIDFLIGHT_CONFIG") or "midflight.yaml"
        if not Path(path).exists():
            return check(Config())
    try:
        raw = msgspec.yaml.decode(Path(path).read_bytes()) or {}
    except FileNotFoundError:
        raise ConfigError(f"No configuration at {path}", todo="`midflight init` writes one") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    return config_from(raw, where=str(path))


def config_from(raw: object, where: str = "configuration") -> Config:
    """Check settings given as plain data. Raises ConfigError with the path of what is wrong."""
    if isinstance(raw, dict):
        unknown = sorted(set(raw) - set(Config.__struct_fields__))
        if unknown:
            raise ConfigError(
                f"{where}: unknown setting `{unknown[0]}`", where=f"$.{unknown[0]}", todo=nearest(unknown[0], Config.__struct_fields__)
            )
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    config.sources = {name: resolve(settings, f"$.sources.{name}") for name, settings in config.sources.items()}
    return check(config)


def check(config: Config) -> Config:
    """Raise ConfigError for settings that each are of the right type but cannot work together."""
    dimensions = config.dimensions()
    if len(dimensions) > attributes_max:
        raise ConfigError("Too many attributes", expected=f"at most {attributes_max}", got=len(dimensions), where="$.attributes")
    names = [d.name for d in dimensions]
    if len(set(names)) < len(names):
        raise ConfigError("An attribute is named twice", got=sorted(names), where="$.attributes")
    if not 1 <= config.shards <= 64:
        raise ConfigError("Wrong number of shards", expected="1 to 64", got=config.shards, where="$.shards")
    if config.retention.dedup_days < 35:
        raise ConfigError(
            "Duplicates have to be remembered longer than vendors repeat them",
            expected="at least 35 days",
            got=config.retention.dedup_days,
            where="$.retention.dedup_days",
        )
    for name, settings in config.sources.items():
        if not name or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
            raise ConfigError("A source's name stands in a URL", expected="letters, digits, - and _", got=name, where="$.sources")
        if "kind" not in settings:
            raise ConfigError(f"Source `{name}` says no vendor", expected="`kind: sendgrid` or another", where=f"$.sources.{name}.kind")
    return config


def resolve(value: object, where: str) -> object:
    """Replace ``env:NAME`` and ``file:PATH`` anywhere in settings by what stands there. Raises ConfigError."""
    if isinstance(value, dict):
        return {k: resolve(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [resolve(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, str) and value.startswith("env:"):
        if value[4:] not in os.environ:
            raise ConfigError(f"The environment has no `{value[4:]}`", where=where)
        return os.environ[value[4:]]
    if isinstance(value, str) and value.startswith("file:"):
        try:
            return Path(value[5:]).read_text().strip()
        except OSError as error:
            raise ConfigError(f"Cannot read the secret: {error.strerror}", got=value, where=where) from None
    return value
