"""Kinds of config fields that a plain default value cannot express."""

from __future__ import annotations

from typing import Any

from ml_collections import FieldReference


def optional(kind: type, value: Any = None) -> FieldReference:
    """A config field of type `kind` that may also be None, which it is at first unless `value` is given."""
    return FieldReference(value, field_type=kind)
