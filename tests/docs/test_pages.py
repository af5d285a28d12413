"""What README and docs say: every code block runs, every command and its options exist, every name and link leads somewhere.

A block that another test runs is under ``<!-- run by tests/... -->``, one that needs hardware, data or a registry under
``<!-- not run: why -->``; of that one the commands are still held against their ``--help``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import itertools
import os
import pkgutil
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from accelsim import zoo
from accelsim.faults import Rates
from accelsim.lowering import lower

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").rglob("*.md"))

_MARKER = re.compile(r"<!-- (run by|not run:) (.+?) -->")
TREE = ("accelsim", "services", "broker", "r2f", "experiments", "benchmarks")

# -- a page taken apart -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. Under a marker comment, another test runs it or nobody can."""

    page: Path
    line: int
    language: str
    text: str
    run_by: str | None = None
    not_run: str | None = None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page in order. An indented one has language '' as one without a language has."""
    found: list[Block] = []
    marker: tuple[str, str] | None = None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            run_by = marker[1] if marker and marker[0] == "run by" else None
            not_run = marker[1] if marker and marker[0] == "not run:" else None
            found.append(Block(page, token.map[0] + 1, token.info.split(" ")[0], token.content, run_by, not_run))
        read = _MARKER.search(token.content) if token.type == "html_block" else None
        marker = (read[1], read[2]) if read else None
    return found


def inline(page: Path) -> list[Token]:
    """Code spans and links in the text of a page."""
    tokens = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    return [child for token in tokens for child in token.children or () if child.type in ("code_inline", "link_open")]


def spans(page: Path) -> list[str]:
    """Code spans of a page, each on one line."""
    return [" ".join(token.content.split()) for token in inline(page) if token.type == "code_inline"]


def anchors(page: Path) -> set[str]:
    """What ``page.md#...`` may name: its headings, in lower case, with hyphens for spaces and without punctuation."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    titles = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> list[list[str]]:
    """The command lines of a shell script as words, without comments and leading assignments."""
    lines = text.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in ([*_without_assignments(words)] for words in split) if words]


def _without_assignments(words: list[str]) -> list[str]:
    first = next((i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=.*", word)), len(words))
    return words[first:]


pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# -- code blocks ------------------------------------------------------------------------------------------------------


@pages
def test_code_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks(page):
        assert block.language in ("sh", "python", "toml", "text"), (
            f"{block}: fence the block and name its language: sh or python, which are run, toml, or text, which is not code"
        )
        if block.run_by is not None:
            test = ROOT / block.run_by
            assert test.is_file(), f"{block}: no test {block.run_by}"
            assert page.name in test.read_text(encoding="utf-8"), f"{block}: {block.run_by} does not read {page.name}"


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """What examples of a few lines may take for granted: a network, an input, an accelerator's rates."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    network = lower(zoo.build("digits_cnn", 10).eval(), images, (0.5,), (0.5,), name="digits_cnn")
    convs = dict(network.convs())
    x = np.zeros((2, *network.input_shape), np.int8)
    x4 = np.zeros((2, *network.shape_of(convs[4].inputs[0])), network.dtype_of(convs[4].inputs[0])) if 4 in convs else x
    return {"network": network, "x": x, "x4": x4, "rates": Rates.uniform(1e-4), "conv": convs[min(convs)]}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which ``python`` and ``r2f`` are this tree's."""
    folder = tmp_path_factory.mktemp("bin")
    for name, command in (("python", ""), ("r2f", "-m r2f.cli")):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} -P {command} "$@"\n')
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


@pages
def test_blocks_of_a_page_run_from_top_to_bottom(
    page: Path, given: dict[str, Any], programs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one folder, Python in one namespace."""
    monkeypatch.chdir(tmp_path)
    namespace = {**given, "__name__": page.stem}
    for block in blocks(page):
        if block.run_by is not None or block.not_run is not None:
            continue
        if block.language == "python":
            source = "\n" * block.line + block.text  # so that a traceback has the page's line
            exec(compile(source, str(page), "exec"), namespace)
        elif block.language == "sh":
            script = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(script, env=programs, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


# -- commands ---------------------------------------------------------------------------------------------------------


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    script = "".join(block.text for block in blocks(page) if block.language == "sh")
    inlined = [span for span in spans(page) if re.match(r"(python -m|r2f [a-z]|make |docker compose |([A-Z_]+=\S* )+)", span)]
    for words in commands(script) + [words for span in inlined for words in commands(span)]:
        if not any("…" in word for word in words):
            check(words, page)


def check(words: list[str], page: Path) -> None:
    """That a command is there and its help names each option. Programs that are not ours are taken as they are."""
    said = f"{page.name}: {' '.join(words)}"
    program = Path(words[0]).name
    if program in ("python", "python3") and words[1:2] == ["-m"] and words[2].split(".")[0] in TREE:
        module, arguments = words[2], words[3:]
        assert importlib.util.find_spec(module) is not None, f"{said}: no module {module}"
        check_options(module, (), arguments, said)
    elif program == "r2f" and len(words) > 1:
        named = [*itertools.takewhile(lambda word: not word.startswith("-"), words[1:])]
        sub = tuple(named[: 2 if named[:1] in (["fleet"], ["provision"]) else 1])  # these have commands of their own
        check_options("r2f.cli", sub, words[1 + len(sub) :], said)
    elif program == "make" and shutil.which("make"):
        targets = [word for word in words[1:] if "=" not in word]
        assert subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, check=False).returncode == 0, said
    elif words[:2] == ["docker", "compose"] and "run" in words:
        services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
        assert next(word for word in words[3:] if not word.startswith("-")) in services, said


def check_options(module: str, sub: tuple[str, ...], arguments: list[str], said: str) -> None:
    options = [argument.split("=")[0] for argument in arguments if argument.startswith("-") and argument != "--help"]
    if options or sub:
        known = help_of(module, sub)
        if "Further options go to r2f retrain" in known:
            known += help_of("r2f.cli", ("retrain",))
        for option in options:
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", known), f"{said}: no option {option}"


@functools.cache
def help_of(module: str, sub: tuple[str, ...]) -> str:
    """What ``python -m module sub --help`` prints, from this process, which has the heavy imports behind it."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), warnings.catch_warnings():
        patch.setattr(sys, "argv", [module, *sub, "--help"])
        patch.setenv("COLUMNS", "300")
        patch.setenv("TERMINAL_WIDTH", "300")
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, of a module that is imported already
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__")
    assert ended.value.code in (0, None), f"{module} {' '.join(sub)} --help: {out.getvalue()}"
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


# -- what was forgotten -----------------------------------------------------------------------------------------------


def shouted(text: str) -> list[str]:
    """Lines, no code and no headings, of nothing but words in capitals, as stand where something is to come."""
    found, lines = [], text.splitlines()
    code = [range(*token.map) for token in MarkdownIt().parse(text) if token.type in ("fence", "code_block") and token.map]
    for number, line in enumerate(lines):
        alone = re.fullmatch(r"(?!#)[\W_]*[A-Z]{2,}([ _-]+([A-Z]+|\d+))*[\W_]*", line)
        if alone and not any(number in block for block in code):
            found.append(line)
    return found


@pages
def test_no_place_was_left_for_something_to_come(page: Path) -> None:
    assert shouted(page.read_text(encoding="utf-8")) == []


def test_a_place_for_something_to_come_is_seen() -> None:
    text = "# TLS\n\nRESULTS\n\n[TABLE 1]\n\n<!-- FIGURE -->\n\n**TO DO**\n\nMQTT is fine.\n\n```sh\nEXIT\n```\n\n| 3 | 4 |\n"
    assert shouted(text) == ["RESULTS", "[TABLE 1]", "<!-- FIGURE -->", "**TO DO**"]


# -- names and links --------------------------------------------------------------------------------------------------


@pages
def test_files_and_names_in_the_text_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it says what was
    for span in spans(page):
        if re.fullmatch(rf"(?:{'|'.join((*TREE, 'tests', 'docs', 'docker'))})/[\w./-]*", span):
            assert (ROOT / span).exists(), f"{page.name}: no {span} in the tree"
        elif re.fullmatch(rf"(?:{'|'.join(TREE)})(?:\.\w+)+", span):
            try:
                pkgutil.resolve_name(span)
            except (ImportError, AttributeError) as error:
                pytest.fail(f"{page.name}: {span}: {error}")


def targets() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for token in inline(page):
            if token.type == "link_open" and not (href := str(token.attrs["href"])).startswith(("http://", "https://")):
                yield page, href


def test_the_contents_list_every_page() -> None:
    listed = {href for page, href in targets() if page == ROOT / "docs" / "index.md"}
    docs = ROOT / "docs"
    assert listed == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} - {"index.md"}


def test_links_lead_somewhere() -> None:
    for page, href in targets():
        name, _, anchor = href.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: no {href}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {href}: no such heading; there are {sorted(anchors(target))}"


def test_what_comments_cite_of_the_architecture_is_there() -> None:
    headings = anchors(ROOT / "docs" / "architecture.md")
    cited = {
        (path.relative_to(ROOT), name)
        for folder in (*TREE, "docs")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".py", ".md")
        for citation in re.findall(r'architecture\.md\)?,((?:\s*(?:and\s*)?"[^"]+",?)+)', path.read_text(encoding="utf-8"))
        for name in re.findall(r'"([^"]+)"', citation)
    }
    assert len(cited) > 20
    assert {(path, name) for path, name in cited if name.lower().replace(" ", "-") not in headings} == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as a site, built without a warning."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    """No page, nor its styles, names a script, font or image of another host."""
    of_a_page = r"<(?:script|img|iframe|link|source|video|embed|object)\b[^>]*?\b(?:src|href|data)=[\"']?((?:https?:)?//[^>]+)"
    of_a_style = r"(?:url\(|@import )[\"']?((?:https?:)?//[^)\"']+)"
    for pattern, expression in (("*.html", of_a_page), ("*.css", of_a_style)):
        files = list(site.rglob(pattern))
        assert files
        for path in files:
            assert re.findall(expression, path.read_text(encoding="utf-8")) == [], path.name


def test_the_site_has_the_docstrings_of_what_is_public(site: Path) -> None:
    for page, names in {
        "retrain": ("r2f.retrain", "r2f.retrain_fleet"),
        "lowering": ("accelsim.lowering.lower.lower", "accelsim.int8.network.Network"),
        "engine": ("accelsim.engine.engine.Engine.replicas",),
        "faults": ("accelsim.faults.soft.FaultModel", "accelsim.faults.permanent.FaultMap"),
        "codings": ("services.codec.core.codings.TABLE", "services.codec.core.codings.Row"),
        "bus": ("services.bus.client.Bus.publish", "services.bus.topics.TABLE"),
    }.items():
        text = (site / "reference" / f"{page}.html").read_text(encoding="utf-8")
        for name in names:
            assert f'id="{name}"' in text, f"{page}: {name}"
    assert "Retrain a network as" in (site / "reference" / "retrain.html").read_text(encoding="utf-8")
    for page in ("CHANGELOG", "CONTRIBUTING", "LICENSE"):
        assert (site / f"{page}.html").exists()
