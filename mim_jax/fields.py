"""Kinds of config fields that a plain default value cannot express."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, FieldReference

from mim_jax.errors import ConfigError


def optional(kind: type, value: Any = None) -> FieldReference:
    """A config field of type `kind` that may also be None, which it is at first unless `value` is given."""
    return FieldReference(value, field_type=kind)


class NamedSections(ConfigDict):
    """Config sections of one form under names that a user may add to; a new one starts as `template()`.

    To lock it is to lock the sections: config files add to it by plain assignment, `config.teachers.mine = dict(...)`.
    """

    def __init__(self, initial: Any = None, template: Callable[[], ConfigDict] = ConfigDict, **options: Any):
        super().__init__(initial, **options)
        object.__setattr__(self, "_template", template)

    def add(self, name: str) -> None:
        """A new section; raises ConfigError for a name that no attribute can have."""
        if not name.isidentifier() or hasattr(self, name):
            raise ConfigError(f"{name!r} cannot be the name of a section; choose another identifier.")
        self[name] = self._template().lock()

    def lock(self) -> NamedSections:
        """Locks every section."""
        for section in self.values():
            section.lock()
        return self

    def copy_and_resolve_references(self, visit_map: dict | None = None) -> NamedSections:
        """A copy with the same template."""
        copy = super().copy_and_resolve_references(visit_map)
        object.__setattr__(copy, "_template", self._template)
        return copy

    def __delitem__(self, key: str) -> None:
        """Refused: the defaults, which every config is laid over, would bring it back."""
        raise KeyError(f"the section {key!r} cannot be deleted; set its 'enabled' to False")
