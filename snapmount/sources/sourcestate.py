"""What every source's part of a record has in common."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core.document import Reshaped


class SourceState(Reshaped):
    """What the record keeps for one kind of source: a dataclass, whose document names the kind beside its fields."""

    kind: ClassVar[str]

    def document_of(self, written: dict[str, Any]) -> dict[str, Any]:
        """The fields, and {"kind": ...} before them."""
        return {"kind": self.kind, **written}

    @classmethod
    def fields_of(cls, document: dict[str, Any]) -> dict[str, Any]:
        """Raises KeyError without a kind, ValueError for another one."""
        kind = document.pop("kind")
        if kind != cls.kind:
            raise ValueError(f"its source is {kind!r}, not {cls.kind!r}")
        return document
