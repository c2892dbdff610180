"""The section ``polls:`` of the configuration: name -> {kind: hubspot, ...that kind's settings}, checked and ready to be asked."""

from __future__ import annotations

from ...kit.errors import ConfigError, nearest
from .. import load
from . import REGISTRY
from .poll import Poll, settings_of


def polls_of(raw: dict[str, dict], sources: dict[str, dict] | None = None) -> dict[str, Poll]:
    """Return the configured polls by name. ``sources`` are the configured ones, with which an ESP's events are read.

    Raises ConfigError with the path of what is wrong.
    """
    found = {}
    for name, settings in raw.items():
        where = f"$.polls.{name}"
        if not name or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError("A poll's name stands in file names", expected="letters, digits, - and _", got=name, where="$.polls")
        if not isinstance(settings, dict) or "kind" not in settings:
            raise ConfigError(f"Poll `{name}` says no kind", expected="`kind: hubspot` or another", where=f"{where}.kind")
        kind = str(settings["kind"])
        if kind not in REGISTRY.names():
            raise ConfigError(f"Unknown kind of poll `{kind}`", where=f"{where}.kind", todo=nearest(kind, REGISTRY.names()))
        found[name] = _poll(REGISTRY.get(kind), name, {k: v for k, v in settings.items() if k != "kind"}, sources or {})
    return found


def _poll(kind: type[Poll], name: str, settings: dict, sources: dict[str, dict]) -> Poll:
    checked = settings_of(kind, settings, name)
    if not kind.vendor:
        return kind(checked, name=name)
    configured = [known for known, given in sources.items() if given.get("kind") == kind.vendor]
    source = checked.source or (configured[0] if len(configured) == 1 else "")
    if not source:
        # Under two names one event would count twice.
        raise ConfigError(
            f"Poll `{name}` has to say under which source its events count",
            expected=f"`source:` with the name of a source of kind `{kind.vendor}`", got=", ".join(configured) or "none is configured",
            where=f"$.polls.{name}.source",
        )  # fmt: skip
    given = dict(sources.get(source) or {"kind": kind.vendor, "unsigned": True})
    if given.pop("kind") != kind.vendor:
        raise ConfigError(f"Source `{source}` is of another kind than poll `{name}`", expected=kind.vendor, where=f"$.polls.{name}.source")
    return kind(checked, name=name, source=load(kind.vendor, given, name=source))
