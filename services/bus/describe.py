"""``python -m services.bus.describe docs/bus.md``: put every topic and message, as the code has them, at the page's end.

Without a page they are printed.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import msgspec

from services.bus import messages, topics
from services.bus.meanings import meanings
from services.bus.messages import Message

_INLINE = (messages.Tensor, messages.Ref)


def markdown() -> str:
    """The table of topics with who sends there, then each message with its fields."""
    lines = ["| topic `r2f/v1/{device}/…` | message | sent by | read by |", "|---|---|---|---|"]
    lines += [f"| `{key}` | {kind.__name__} | {_senders(key)} | {_receivers(key)} |" for key, kind in topics.TABLE.items()]
    lines += ["| `state/{service}` | State, retained | that service | any |", "| `event/{stage}` | Timing | any | any |"]
    common = {field.name for field in _info(Message).fields}
    lines += ["", "Every message:", "", *_fields(messages.Replicas, set(messages.Replicas.__struct_fields__) - common)]
    for kind in every_kind():
        lines += ["", f"**{kind.__name__}**, `type` = `{kind.__name__.lower()}`", "", *_fields(kind, common)]
    found = dict.fromkeys(part for kind in every_kind() for part in parts(kind))
    inner: list[type] = [*(part for part in found if part not in _INLINE), *_INLINE]
    for part in inner:
        how = "an array in this order" if _info(part).array_like else "a map"
        lines += ["", f"*{part.__name__}*, {how}: {_first_line(part)}", "", *_fields(part, set())]
    return "\n".join(lines) + "\n"


def every_kind() -> list[type[Message]]:
    """Every type of message, in the order of the topics."""
    kinds = dict.fromkeys(topics.TABLE.values())
    return [*kinds, messages.State, messages.Timing, messages.Manifest, messages.Chunk, messages.Sealed]


def _senders(key: str) -> str:
    if topics.SENDERS.get(key):
        return " and ".join(topics.SENDERS[key])
    return "who receives there" if key.endswith(f"/{topics.FLOW}") else "any"


def _receivers(key: str) -> str:
    if key in topics.RECEIVERS:
        return " and ".join(topics.RECEIVERS[key])
    return "who sends there" if key.endswith(f"/{topics.FLOW}") else "any"


def _info(kind: type) -> msgspec.inspect.StructType:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return info


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")


def _fields(kind: type, common: set[str]) -> list[str]:
    lines, told = [], meanings(kind)
    for field in _info(kind).fields:
        if field.name not in common:
            default = "" if field.required else " (optional)"
            if isinstance(field.default, bool | int | float | str) and field.default:
                default = f" (optional, `{str(field.default).lower()}` where left out)"
            lines.append(f"- `{field.name}`: {_text(field.type)}{default}. {told[field.name]}")
    return lines


def _text(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.StructType():
            return kind.cls.__name__
        case msgspec.inspect.LiteralType():
            return " or ".join(f"`{value}`" for value in kind.values)
        case msgspec.inspect.VarTupleType():
            return f"array of {_text(kind.item_type)}"
        case msgspec.inspect.TupleType():
            return "[" + ", ".join(_text(item) for item in kind.item_types) + "]"
        case msgspec.inspect.DictType():
            return f"map of {_text(kind.key_type)} to {_text(kind.value_type)}"
        case msgspec.inspect.UnionType():
            return " or ".join(_text(item) for item in kind.types)
        case msgspec.inspect.IntType(ge=0):
            return "unsigned"
        case msgspec.inspect.StrType(max_length=int()):
            return f"text of at most {kind.max_length}"
        case _:
            return {"IntType": "int", "StrType": "text", "NoneType": "nil", "BytesType": "bytes"}.get(
                name := type(kind).__name__, name.removesuffix("Type").lower()
            )


def parts(kind: type) -> list[type[msgspec.Struct]]:
    """The structs that a message is made of, itself aside, outermost first."""
    found: list[type[msgspec.Struct]] = []

    def visit(what: Any) -> None:
        if isinstance(what, msgspec.inspect.StructType) and what.cls is not kind:
            found.append(what.cls)
            for field in what.fields:
                visit(field.type)
        for name in ("types", "item_types"):
            for item in getattr(what, name, ()):
                visit(item)
        if hasattr(what, "item_type"):
            visit(what.item_type)

    for field in _info(kind).fields:
        visit(field.type)
    return found


MARK = "<!-- python -m services.bus.describe docs/bus.md -->\n\n"


def main() -> None:
    """Print, or write the end of the page that is named. Exits with 1 where that page has no mark to write behind."""
    if len(sys.argv) == 1:
        print(markdown(), end="")
        return
    page = Path(sys.argv[1])
    head, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        sys.exit(f"{page} has no line {MARK.strip()!r} to write behind")
    page.write_text(head + mark + markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
