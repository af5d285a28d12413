"""``python -m services.bus.asyncapi docs/asyncapi.json``: the contract as an AsyncAPI 3.0 document, as the code has it.

Without a file it is printed. ``--page FILE.html --component FOLDER`` writes the same as one HTML page that needs no network:
FOLDER is that of the npm package ``@asyncapi/react-component``.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from services.bus import encoding, messages, topics
from services.bus.describe import every_kind, parts
from services.bus.examples import EXAMPLES, plain
from services.bus.meanings import meanings
from services.bus.messages import ROOT, VERSION, Message
from services.devices import LEVEL

_SCHEMAS = "#/components/schemas/{name}"
_RETAINED = ("down/mode",)
ABOUT = f"""Services of R2F talk over MQTT 3.1.1, QoS 1, one msgpack map a message. docs/bus.md says what no schema can.

Schemas are of the message as JSON has it; in msgpack, bytes (`contentEncoding: base64` here) are `bin`, whole numbers are
`int`, and every example has its msgpack bytes in `x-msgpack`, in hex. A message above the packet's limit goes as a
Manifest and Chunks on its own topic.

Version {VERSION}: a reader ignores topics, keys and trailing array elements that it does not know, and takes the default of an
optional one that is missing. It drops a message whose `v` is another version, or that has a value which it does not know."""


def document() -> dict[str, Any]:
    """The document, as plain data; the same for the same code."""
    kinds = every_kind()
    found = dict.fromkeys(part for kind in kinds for part in parts(kind))
    _, schemas = msgspec.json.schema_components([*kinds, *found], ref_template=_SCHEMAS)
    for kind in [*kinds, *found]:
        _explain(kind, schemas[kind.__name__])
    channels = {key.replace("/", "."): _channel(key, kind) for key, kind in topics.TABLE.items()}
    channels["state.service"] = _channel("state/{service}", messages.State)
    channels["event.stage"] = _channel("event/{stage}", messages.Timing)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "R2F bus",
            "version": f"{VERSION}.0.0",
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/msgpack",
        "servers": {"broker": {"host": "127.0.0.1:1883", "protocol": "mqtt", "protocolVersion": "3.1.1"}},
        "channels": channels,
        "operations": _operations(),
        "components": {
            "messages": {kind.__name__: _message(kind) for kind in kinds},
            "schemas": {name: _draft7(schemas[name]) for name in sorted(schemas)},
        },
    }


def _explain(kind: type[msgspec.Struct], schema: dict[str, Any]) -> None:
    """Put each field's meaning into its schema."""
    schema["description"] = " ".join((inspect.getdoc(kind) or "").replace("``", "`").split())
    told = meanings(kind)
    if "prefixItems" in schema:
        for name, item in zip(told, schema["prefixItems"], strict=True):
            item |= {"title": name, "description": told[name]}
    else:
        for name, text in told.items():
            schema["properties"][name] = _described(schema["properties"][name], text)


def _described(schema: dict[str, Any], text: str) -> dict[str, Any]:
    # Beside a $ref, draft 7 reads no other keyword.
    return {"allOf": [schema], "description": text} if "$ref" in schema else schema | {"description": text}


def _draft7(schema: Any) -> Any:
    """The same schema in the words of JSON Schema draft 7, which AsyncAPI's own schemas are a superset of."""
    if isinstance(schema, list):
        return [_draft7(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _draft7(value) for key, value in schema.items()}
    if "prefixItems" in made:
        rest = made.pop("items", True)
        made |= {"items": made.pop("prefixItems"), "additionalItems": rest}
    return made


def _message(kind: type[Message]) -> dict[str, Any]:
    example = EXAMPLES[kind]
    return {
        "name": kind.__name__.lower(),
        "title": kind.__name__,
        "summary": " ".join((inspect.getdoc(kind) or kind.__name__).split("\n\n")[0].replace("``", "`").split()),
        "contentType": "application/msgpack",
        "payload": {"$ref": _SCHEMAS.format(name=kind.__name__)},
        "examples": [{"name": kind.__name__.lower(), "payload": plain(example)}],
        "x-msgpack": encoding.encode(example).hex(),
    }


def _channel(key: str, kind: type[Message]) -> dict[str, Any]:
    parameters = {"device": {"description": f"Name of the device, `{LEVEL.pattern}`."}}
    if key == "state/{service}":
        parameters["service"] = {"description": "Name of the service, as in its State."}
    if key == "event/{stage}":
        parameters["stage"] = {"description": "Stage of the iteration, as in the message."}
    carried: list[type[Message]] = [kind, messages.Manifest, messages.Chunk]
    if key.split("/")[0] not in topics.ANSWERS:
        carried = [kind]
    return {
        "address": f"{ROOT}/{{device}}/{key}",
        "parameters": parameters,
        "messages": {one.__name__: {"$ref": f"#/components/messages/{one.__name__}"} for one in carried},
    }


def _operations() -> dict[str, Any]:
    """What each service sends and listens to, by the service's name and the topic."""
    found = {}
    for action, who in (("send", topics.SENDERS), ("receive", topics.RECEIVERS)):
        for key, services in who.items():
            for service in services or ("any",):
                found[f"{service}.{action}.{key.replace('/', '.')}"] = _operation(action, service, key.replace("/", "."), key)
    for service in dict.fromkeys(service for services in topics.SENDERS.values() for service in services):
        found[f"{service}.send.state"] = _operation("send", service, "state.service", "state")
    return found


def _operation(action: str, service: str, channel: str, key: str) -> dict[str, Any]:
    binding: dict[str, Any] = {"qos": 1}
    if action == "send":
        binding["retain"] = key in _RETAINED or key == "state"
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "tags": [{"name": service}],
        "bindings": {"mqtt": binding},
    }


def text() -> str:
    """The document as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=1).decode() + "\n"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>R2F bus</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body><div id="asyncapi"></div><script>{script}</script>
<script>
AsyncApiStandalone.render({{schema: {schema}, config: {{show: {{sidebar: true}}}}}}, document.getElementById("asyncapi"))
</script>
</body></html>
"""


def page(component: Path) -> str:
    """One HTML page with all in it. Raises FileNotFoundError where the npm package is not whole."""
    style = (component / "styles" / "default.min.css").read_text(encoding="utf-8")
    script = (component / "browser" / "standalone" / "index.js").read_text(encoding="utf-8")
    # What looks like the script's end inside of it would be.
    inside = {"script": script.replace("</script", "<\\/script"), "schema": text().replace("</", "<\\/")}
    return PAGE.format(style=style, **inside)


def main(
    file: Annotated[Path | None, typer.Argument(help="Where the document goes; printed where not given.")] = None,
    page_to: Annotated[Path | None, typer.Option("--page", help="Write the HTML page there instead.")] = None,
    component: Annotated[Path | None, typer.Option(help="Folder of the npm package @asyncapi/react-component.")] = None,
) -> None:
    """The contract on the bus as an AsyncAPI 3.0 document, or as a page of it."""
    if page_to is not None:
        if component is None:
            sys.exit("--page needs --component: the folder of the npm package @asyncapi/react-component")
        try:
            page_to.write_text(page(component), encoding="utf-8")
        except OSError as error:
            sys.exit(f"{component}: {error}; install it: npm install @asyncapi/react-component")
    elif file is not None:
        file.write_text(text(), encoding="utf-8")
    else:
        print(text(), end="")


if __name__ == "__main__":
    typer.run(main)
