"""The configuration file `midflight.yaml`, checked strictly; a wrong one stops the start and says where it is wrong."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import yaml

from .kit.errors import ConfigError, nearest

attributes_max = 7  # one byte each in a cell's key

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Days = Annotated[int, msgspec.Meta(ge=1, le=36_500)]


class Door(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where webhooks come in. ``public_url`` is how vendors reach it; Mandrill signs it, and the console shows it to copy."""

    host: str = "127.0.0.1"  # address to listen on; a proxy with TLS stands in front of it
    port: Port = 8400  # port to listen on
    public_url: str = ""  # `https://hooks.example.com`, without a path
    body_bytes_max: Count = 5 * 1024 * 1024  # larger requests get 413
    inflated_bytes_max: Count = 20 * 1024 * 1024  # the same, for what a compressed body becomes
    events_max: Count = 10_000  # more events in one request get 413
    event_bytes_max: Count = 256 * 1024  # a larger single event gets 413
    connections_max: Count = 2_000  # open connections at a time
    slow_client_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0  # a request that has not arrived by then is cut off
    waiting_bytes_max: Count = 64 * 1024 * 1024  # bodies waiting to be stored; beyond it new ones get 429

    @property
    def base_url(self) -> str:
        """Return where links lead: the public address, or on a machine without one its own."""
        return self.public_url or f"http://{self.host or '127.0.0.1'}:{self.port}"


class Console(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where people and programs look. Users and tokens are made with `midflight user` and `midflight token`."""

    host: str = "127.0.0.1"  # address to listen on; a proxy with TLS stands in front of it
    port: Port = 8401  # port to listen on


class Attribution(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A conversion belongs to the last human click of its recipient at most this long before it."""

    click_window_minutes: Count = 7 * 24 * 60  # 7 days


class Attribute(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A recipient attribute that is a dimension of every number: its values, or numbers cut into bands.

    ``bands: [25, 40, 60]`` makes ``<25``, ``25-39``, ``40-59``, ``60+`` of a number.
    """

    name: str  # what the dimension is called
    trait: str = ""  # the trait it is read from; the name, where none is given
    bands: list[float] = []  # ascending edges, for numbers


class Retention(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How long things are kept. The log is the truth: what it loses cannot be rebuilt."""

    log_days: Days = 400  # accepted requests, byte for byte
    dedup_days: Days = 40  # how long a repeated event is known as one; at least 35
    history_days: Days = 3650  # one row an event, for `midflight sql`


People = Annotated[int, msgspec.Meta(ge=0, le=100_000)]


class Sending(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What holds for all campaigns that Midflight sends itself. Links to unsubscribe lead to `door.public_url`."""

    recipient_per_day: Annotated[int, msgspec.Meta(ge=0)] = 0  # messages to one person in 24 hours, all campaigns together; 0 is no bound
    mailto: str = ""  # an address that takes empty emails as unsubscribes, named beside the link
    speed: Annotated[float, msgspec.Meta(ge=1)] = 1.0  # how many hours of a campaign go by in one; above 1 only for a world that is played


class Automation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How far rules may reach, all together, and where their ways out may call. Bounds of 0 are none."""

    people_per_hour: People = 1_000  # people whom rules touch within an hour without somebody having said yes
    per_way: dict[str, People] = {}  # the same for single ways out, by their names
    ceiling_per_hour: People = 20_000  # the same for rules that may act beyond that
    person_per_day: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 3  # how often one person is touched in a day, campaigns counted
    allow_networks: list[str] = []  # networks that ways out may connect to although they are not on the internet, as `10.1.0.0/16`
    allow_ports: list[Annotated[int, msgspec.Meta(ge=1, le=65535)]] = msgspec.field(default_factory=lambda: [443])  # where they may connect
    allow_http: bool = False  # whether they may call without TLS


class AlertMail(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To whom alerts go by email."""

    channel: str = ""  # the channel by which they go
    from_address: str = ""  # what they come from
    to: Annotated[list[str], msgspec.Meta(max_length=20)] = []  # who gets them; nobody where it is empty


class Alerts(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whom to tell when something needs somebody: see [operating](operating.md#alerts). Nobody is told unless somebody is named."""

    ways: Annotated[list[str], msgspec.Meta(max_length=20)] = []  # ways out of kind slack, teams or webhook, by their names
    email: AlertMail = msgspec.field(default_factory=AlertMail)  # by which channel, from which address, and to whom emails go
    console_url: str = ""  # where links lead: the console's address as people reach it, as `https://midflight.shop.example`
    repeat_hours: Annotated[float, msgspec.Meta(ge=0.1, le=24 * 30)] = 12.0  # what lasts is told again after so long
    per_hour: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20  # single alerts within an hour; more are told together in one


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
    # name -> {kind: sendgrid, ...its settings}: the ways out, by which campaigns are sent
    channels: dict[str, dict] = {}
    # name -> {kind: slack, ...its settings}: the other ways out, by which rules act; there is always one named `email`
    ways: dict[str, dict] = {}
    # name -> {kind: hubspot, ...its settings}: other systems that are asked now and then, each one a kind of `polls`
    polls: dict[str, dict] = {}
    # name -> {kind: hubspot, ...its settings}: where segments and engagement are written back to
    ways_back: dict[str, dict] = {}
    sending: Sending = msgspec.field(default_factory=Sending)
    automation: Automation = msgspec.field(default_factory=Automation)
    alerts: Alerts = msgspec.field(default_factory=Alerts)
    expected_messages: int = 0  # messages within `dedup_days` that the engine takes memory for when it starts; more may come
    shards: int = 1  # parts the recipients are divided into, 1 to 64; the numbers are the same for any

    @property
    def folder(self) -> Path:
        return Path(self.data)

    def make_folder(self) -> Path:
        """Return the data folder; where there is none it is made, for its owner alone. Raises ConfigError."""
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise ConfigError(f"The data folder cannot be made: {error.strerror}", got=self.data, where="$.data") from None
        return self.folder

    def dimensions(self) -> list[Attribute]:
        """Return the attributes that are dimensions, in their order in the cell's key."""
        return [Attribute(name=a, trait=a) if isinstance(a, str) else a for a in self.attributes]


def load_config(path: str | Path | None = None) -> Config:
    """Read and check a configuration file; without one, the defaults. Raises ConfigError.

    Secrets written as ``env:NAME`` or ``file:PATH`` are read here, so that the file itself can be shown to anybody.
    """
    if path is None:
        path = os.environ.get("MIDFLIGHT_CONFIG", "")
        # A file that somebody named has to be there; only the one that nobody named need not.
        if not path and not Path("midflight.yaml").exists():
            return check(Config())
    path = path or "midflight.yaml"
    try:
        text = Path(path).read_bytes()
        refuse_repeated(yaml.compose(text, yaml.CSafeLoader), "$", str(path))
        raw = msgspec.yaml.decode(text)
    except FileNotFoundError:
        raise ConfigError(f"No configuration at {path}", todo=f"`midflight init {path}` writes one") from None
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    return config_from({} if raw is None else raw, where=str(path))


def refuse_repeated(node: yaml.Node | None, at: str, where: str) -> None:
    """Raise ConfigError for a name that stands twice in one mapping: YAML would silently take the second."""
    names: set[str] = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name in names:
            line = key.start_mark.line + 1
            raise ConfigError(f"{where}: `{name}` stands twice", where=f"{at}.{name}", todo=f"The second is in line {line}")
        names.add(name)
        # An alias may lead back to where it stands; what it names is looked at where it is written.
        if key.start_mark.index <= value.start_mark.index:
            refuse_repeated(value, f"{at}.{name}", where)


def config_from(raw: object, where: str = "configuration") -> Config:
    """Check settings given as plain data. Raises ConfigError with the path of what is wrong."""
    refuse_unknown(raw, Config, "$", where)
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    config.sources = {name: resolve(settings, f"$.sources.{name}") for name, settings in config.sources.items()}
    config.channels = {name: resolve(settings, f"$.channels.{name}") for name, settings in config.channels.items()}
    config.ways = {name: resolve(settings, f"$.ways.{name}") for name, settings in config.ways.items()}
    config.polls = {name: resolve(settings, f"$.polls.{name}") for name, settings in config.polls.items()}
    config.ways_back = {name: resolve(settings, f"$.ways_back.{name}") for name, settings in config.ways_back.items()}
    return check(config)


def refuse_unknown(raw: object, struct: type[msgspec.Struct], at: str, where: str) -> None:
    """Raise ConfigError for a setting that a struct does not have, with the nearest that it has."""
    for name, value in raw.items() if isinstance(raw, dict) else ():
        if name not in struct.__struct_fields__:
            todo = nearest(str(name), struct.__struct_fields__)
            raise ConfigError(f"{where}: unknown setting `{name}`", where=f"{at}.{name}", todo=todo)
        section = struct.__annotations__[name]
        if section in SECTIONS:
            refuse_unknown(value, SECTIONS[section], f"{at}.{name}", where)


SECTIONS = {section.__name__: section for section in (Door, Console, Attribution, Retention, Sending, Automation, Alerts, AlertMail)}
expected_messages_max = 1_000_000_000


def check(config: Config) -> Config:
    """Raise ConfigError for settings that each are of the right type but cannot work together."""
    check_places(config)
    check_dimensions(config.dimensions())
    if not 1 <= config.shards <= 64:
        raise ConfigError("Wrong number of shards", expected="1 to 64", got=config.shards, where="$.shards")
    if not 0 <= config.expected_messages <= expected_messages_max:
        raise ConfigError(
            "Wrong number of expected messages",
            expected=f"0 to {expected_messages_max:,}",
            got=config.expected_messages,
            where="$.expected_messages",
        )
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
    for name, settings in config.channels.items():
        if "kind" not in settings:
            raise ConfigError(f"Channel `{name}` says no vendor", expected="`kind: smtp` or another", where=f"$.channels.{name}.kind")
    for name, settings in config.ways.items():
        if not name.strip() or len(name) > 100 or not name.isprintable():
            raise ConfigError("A way out needs a name", expected="1 to 100 printable characters", got=name[:120], where="$.ways")
        if "kind" not in settings:
            raise ConfigError(f"Way `{name}` says no kind", expected="`kind: slack` or another", where=f"$.ways.{name}.kind")
    check_automation(config)
    check_alerts(config)
    return config


def check_automation(config: Config) -> None:
    """Raise ConfigError for networks that are none, and bounds of ways that are not there."""
    for index, network in enumerate(config.automation.allow_networks):
        try:
            ip_network(network)
        except ValueError:
            where = f"$.automation.allow_networks[{index}]"
            raise ConfigError("Not a network", expected="`10.1.0.0/16`", got=network[:100], where=where) from None
    for name in config.automation.per_way:
        if name not in {"email", *config.ways}:
            todo = nearest(name[:100], ["email", *config.ways])
            raise ConfigError(f"Unknown way out `{name[:100]}`", where=f"$.automation.per_way.{name[:100]}", todo=todo)


def check_alerts(config: Config) -> None:
    """Raise ConfigError for alerts to ways or channels that are not there, and links that lead nowhere."""
    alerts = config.alerts
    for index, name in enumerate(alerts.ways):
        if name not in config.ways or alerts.ways.index(name) < index:
            todo = nearest(name[:100], list(config.ways))
            raise ConfigError(f"Unknown way out `{name[:100]}`, or named twice", where=f"$.alerts.ways[{index}]", todo=todo)
    if alerts.email.to and alerts.email.channel not in config.channels:
        name = alerts.email.channel[:100]
        todo = nearest(name, list(config.channels))
        raise ConfigError(f"Unknown channel `{name}`", where="$.alerts.email.channel", todo=todo)
    if len({to.lower() for to in alerts.email.to}) < len(alerts.email.to):
        raise ConfigError("Somebody is named twice", got=alerts.email.to, where="$.alerts.email.to")
    url = urlsplit(alerts.console_url)
    if alerts.console_url and (url.scheme not in ("http", "https") or not url.netloc or url.query or url.fragment):
        got = alerts.console_url[:200]
        raise ConfigError("Not the console's address", expected="`https://midflight.example.com`", got=got, where="$.alerts.console_url")


def check_places(config: Config) -> None:
    """Raise ConfigError where door and console want one port, or vendors could not use the public URL."""
    door, console = config.door, config.console
    if door.port and (door.host, door.port) == (console.host, console.port):
        raise ConfigError("Door and console cannot share a port", got=door.port, where="$.console.port")
    url = urlsplit(door.public_url)
    if door.public_url and (url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/") or url.query or url.fragment):
        raise ConfigError("Not the door's address", expected="`https://hooks.example.com`", got=door.public_url, where="$.door.public_url")


def check_dimensions(dimensions: list[Attribute]) -> None:
    """Raise ConfigError for attributes that cannot all be dimensions."""
    if len(dimensions) > attributes_max:
        raise ConfigError("Too many attributes", expected=f"at most {attributes_max}", got=len(dimensions), where="$.attributes")
    names = [d.name for d in dimensions]
    if len(set(names)) < len(names):
        raise ConfigError("An attribute is named twice", got=sorted(names), where="$.attributes")
    for index, dimension in enumerate(dimensions):
        where = f"$.attributes[{index}]"
        if not dimension.name.strip():
            raise ConfigError("An attribute needs a name", where=where)
        if any(low >= high for low, high in zip(dimension.bands, dimension.bands[1:], strict=False)):
            raise ConfigError("Bands have to ascend", expected="`[25, 40, 60]`", got=dimension.bands, where=f"{where}.bands")


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
