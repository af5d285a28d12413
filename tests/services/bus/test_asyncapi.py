"""docs/asyncapi.json is the code's contract, AsyncAPI's own tools take it, and its rule for versions is what we do."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from services.bus import asyncapi, describe, encoding, meanings, topics
from services.bus.examples import EXAMPLES
from services.bus.messages import Chunk, Manifest, Message

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "docs" / "asyncapi.json"
NPM = Path(os.environ.get("R2F_NPM", ROOT / ".venv" / "npm")) / "node_modules" / "@asyncapi"
KINDS = describe.every_kind()


def topic_of(kind: type[Message]) -> str:
    """A topic on which that message may travel."""
    found = [key for key, carried in topics.TABLE.items() if carried is kind]
    ours = {
        "State": "state/agent",
        "Timing": "event/forward",
        "Manifest": "up/layers",
        "Chunk": "up/layers",
        "Sealed": "up/layers",
    }
    return f"r2f/v1/edge-0/{found[0] if found else ours[kind.__name__]}"


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def test_the_document_is_the_codes() -> None:
    assert FILE.read_text(encoding="utf-8") == asyncapi.text(), "run: python -m services.bus.asyncapi docs/asyncapi.json"


def test_every_topic_and_every_message_is_in_it_and_every_reference_leads_somewhere() -> None:
    document = json.loads(FILE.read_text(encoding="utf-8"))
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert addresses == {f"r2f/v1/{{device}}/{key}" for key in (*topics.TABLE, "state/{service}", "event/{stage}")}
    assert set(document["components"]["messages"]) == {kind.__name__ for kind in KINDS}
    for node in nodes(document):
        if "$ref" in node:
            where = document
            for part in node["$ref"].removeprefix("#/").split("/"):
                where = where[part]
            assert where


def test_every_field_says_what_it_means() -> None:
    document = json.loads(FILE.read_text(encoding="utf-8"))
    for name, schema in document["components"]["schemas"].items():
        fields = schema.get("properties") or {item["title"]: item for item in schema["items"]}
        for field, about in fields.items():
            assert field == "type" or about.get("description"), f"{name}.{field}"


def test_a_field_that_nobody_explained_is_named() -> None:
    class Forward(Message):
        fresh_thing: int

    Forward.__module__ = "tests"
    with pytest.raises(KeyError, match=r"Forward\.fresh_thing: say what it means"):
        meanings.meanings(Forward)


def test_no_meaning_is_of_a_field_that_is_gone() -> None:
    kinds = [*KINDS, *(part for kind in KINDS for part in describe.parts(kind))]
    assert set(meanings.OF) <= {f"{kind.__name__}.{name}" for kind in kinds for name in kind.__struct_fields__}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_examples_bytes_are_that_message(kind: type[Message]) -> None:
    said = json.loads(FILE.read_text(encoding="utf-8"))["components"]["messages"][kind.__name__]
    payload = bytes.fromhex(said["x-msgpack"])
    assert encoding.decode(topic_of(kind), payload) == EXAMPLES[kind]

    def as_json(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: as_json(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [as_json(inner) for inner in value]
        return base64.b64encode(value).decode() if isinstance(value, bytes) else value

    assert as_json(msgpack.unpackb(payload)) == said["examples"][0]["payload"], "what another reader of msgpack makes of it"


def test_asyncapis_own_parser_takes_it() -> None:
    if shutil.which("node") is None or not (NPM / "parser").is_dir():
        pytest.skip("node or @asyncapi/parser is not here (make docs): the document is checked by our own tests alone")
    script = Path(__file__).with_name("asyncapi_parse.mjs")
    done = subprocess.run(["node", script, NPM / "parser", FILE], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_asyncapis_own_parser_finds_what_is_wrong(tmp_path: Path) -> None:
    if shutil.which("node") is None or not (NPM / "parser").is_dir():
        pytest.skip("node or @asyncapi/parser is not here (make docs)")
    broken = json.loads(FILE.read_text(encoding="utf-8"))
    broken["operations"]["voter.send.edge.voted"]["action"] = "shout"
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    script = Path(__file__).with_name("asyncapi_parse.mjs")
    command = ["node", script, NPM / "parser", tmp_path / "broken.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "operations.voter.send.edge.voted.action" in done.stdout


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    """Everything is inside: no script, style or picture is fetched from elsewhere."""
    component = tmp_path / "component"
    (component / "styles").mkdir(parents=True)
    (component / "browser" / "standalone").mkdir(parents=True)
    (component / "styles" / "default.min.css").write_text("body{}")
    (component / "browser" / "standalone" / "index.js").write_text("var AsyncApiStandalone = '</script>'")
    page = asyncapi.page(component)
    assert page.count("</script>") == 3 - 1
    assert "src=" not in page
    assert "<link" not in page
    command = [
        sys.executable,
        "-m",
        "services.bus.asyncapi",
        "--page",
        str(tmp_path / "page.html"),
        "--component",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "npm install @asyncapi/react-component" in done.stderr
    assert "Traceback" not in done.stderr


# -- what a newer and an older side do (docs/bus.md, "Versions") ------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_newer_sides_keys_are_not_looked_at(kind: type[Message]) -> None:
    newer = msgpack.unpackb(encoding.encode(EXAMPLES[kind])) | {"added_later": {"x": [1, 2]}}
    assert encoding.decode(topic_of(kind), msgpack.packb(newer)) == EXAMPLES[kind]


@pytest.mark.parametrize("name", ["EncodedLayers", "EncodedRepair"])
def test_a_newer_sides_elements_at_an_arrays_end_are_not_looked_at(name: str) -> None:
    (kind,) = (kind for kind in KINDS if kind.__name__ == name)
    newer = msgpack.unpackb(encoding.encode(EXAMPLES[kind]))
    newer["layers"][0].append("added later")
    assert encoding.decode(topic_of(kind), msgpack.packb(newer)) == EXAMPLES[kind]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_older_side_that_leaves_out_what_is_optional_is_understood(kind: type[Message]) -> None:
    plain = msgpack.unpackb(encoding.encode(EXAMPLES[kind]))
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    older = {key: value for key, value in plain.items() if key in required or key == "type"}
    decoded = encoding.decode(topic_of(kind), msgpack.packb(older))
    assert all(getattr(decoded, name) == getattr(EXAMPLES[kind], name) for name in required)
    assert decoded.v == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_message_of_another_version_is_dropped(kind: type[Message]) -> None:
    other = msgpack.unpackb(encoding.encode(EXAMPLES[kind])) | {"v": 2}
    with pytest.raises(encoding.MessageError, match=r"version 2 of the contract; this is version 1"):
        encoding.decode(topic_of(kind), msgpack.packb(other))


def test_a_value_that_only_a_newer_side_knows_is_dropped() -> None:
    newer = msgpack.unpackb(encoding.encode(EXAMPLES[topics.TABLE["down/mode"]]))
    newer["scheme"] = {"codec": "quantum"}
    with pytest.raises(encoding.MessageError, match="quantum"):
        encoding.decode("r2f/v1/edge-0/down/mode", msgpack.packb(newer))


def test_a_topic_of_another_version_is_none_of_ours() -> None:
    with pytest.raises(encoding.MessageError, match="r2f/v2/edge-0/up/ack"):
        encoding.decode("r2f/v2/edge-0/up/ack", encoding.encode(EXAMPLES[topics.TABLE["up/ack"]]))


def test_the_example_of_a_chunk_is_the_manifests() -> None:
    manifest, chunk = EXAMPLES[Manifest], EXAMPLES[Chunk]
    assert isinstance(manifest, Manifest)
    assert isinstance(chunk, Chunk)
    assert (manifest.digest, len(chunk.data)) == (chunk.digest, min(manifest.chunk, manifest.length))
