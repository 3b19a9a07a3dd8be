"""What the documents show runs, what they name exists, and the examples are short and quick.

A fenced Python block after the comment `<!-- not run -->` is left out.  A block that begins with a
comment of a file's name is that file.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from everyway.apps import cli
from everyway.systems import SYSTEMS
from everyway.train.config import tomllib

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
NOT_RUN = "<!-- not run -->"
TO_BE_WRITTEN = {"codecs/sound.py", "tests/systems/test_mine.py"}
WRITTEN_BY_US = {"config.json"}  # in every model folder and run folder
FILE = re.compile(r"# ([\w.-]+\.(?:py|toml))\n")
SUFFIXES = "py|md|sh|json|toml|png|jsonl|safetensors"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def each(documents: list[Path]):
    return pytest.mark.parametrize("document", documents, ids=name)


def blocks(document: Path) -> list[tuple[str, int, str, bool]]:
    """(language, number of the first line, text, whether it is run) of every fenced block."""
    found, fence, last, text = [], None, "", []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if fence is None and line.lstrip().startswith("```"):
            fence, text = (line.strip().strip("`"), number + 1, last != NOT_RUN), []
        elif fence is not None and line.strip() == "```":
            found.append((fence[0], fence[1], "\n".join(text), fence[2]))
            fence = None
        elif fence is not None:
            text.append(line)
        if line.strip():
            last = line.strip()
    assert fence is None, f"{document}: a block is not closed"
    return found


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(document: Path) -> list[str]:
    """The lines of its shell blocks, without comments and prompts."""
    lines = []
    for language, _, text, _ in blocks(document):
        if language in ("", "sh", "bash", "shell", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                if language == "console" and not line.startswith("$ "):
                    continue  # what it prints
                words = line.split(" #")[0].strip().removeprefix("$ ")
                lines += [words] if words and not words.startswith("#") else []
    return lines


# -- code -------------------------------------------------------------------------------------


def has_python(document: Path) -> bool:
    return any(language == "python" for language, *_ in blocks(document))


@each([d for d in DOCUMENTS if has_python(d)])
def test_python_blocks_run(document, tmp_path, monkeypatch):
    """In one namespace a document, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__document__"}
    for language, line, text, run in blocks(document):
        if language == "python" and run and not FILE.match(text):
            shown = "\n" * (line - 1) + text
            exec(compile(shown, name(document), "exec", dont_inherit=True), namespace)


@each([d for d in DOCUMENTS if any(FILE.match(text) for _, _, text, _ in blocks(d))])
def test_files_and_commands_of_a_document_work_together(document, tmp_path, monkeypatch):
    """Its entry points are taken as an installation would, and the commands are run in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for _, _, text, _ in blocks(document):
        if found := FILE.match(text):
            Path(found[1]).write_text(text, encoding="utf-8")
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    for system, module in project["entry-points"]["everyway.systems"].items():
        monkeypatch.setitem(SYSTEMS, system, module)
    for line in commands(document):
        if line.startswith("everyway "):
            assert cli.main(shlex.split(line)[1:]) == 0, line


def has_console(document: Path) -> bool:
    return any(language == "console" for language, *_ in blocks(document))


@each([d for d in DOCUMENTS if has_console(d)])
def test_commands_print_what_is_shown(document, run, monkeypatch):
    """But for how long it took; notes, which are on standard error, come first."""
    monkeypatch.setenv("LANGUAGE", "en")
    for language, _, text, _ in blocks(document):
        for shown in text.split("$ ")[1:] if language == "console" else ():
            line, _, wanted = shown.partition("\n")
            code, out, err = run(*shlex.split(line)[1:])
            printed = re.sub(r"  [0-9.]+ s$", "  N s", err + out, flags=re.M)
            assert printed.split("\n")[:-1] == [
                re.sub(r"  [0-9.]+ s$", "  N s", row) for row in wanted.split("\n") if row
            ]
            assert code == 0


def test_a_block_is_found_run_or_left_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"a\n```python\nx = 1\n```\n{NOT_RUN}\n\n```python\ny\n```\n```\nls\n```\n")
    python = [("python", 3, "x = 1", True), ("python", 8, "y", False)]
    assert blocks(page) == [*python, ("", 11, "ls", True)]
    assert commands(page) == ["ls"] and "x = 1" not in prose(page)


@each(DOCUMENTS)
def test_commands_are_understood(document):
    """`everyway ...` by the real parser, `make` by its targets, scripts and examples by name."""
    spans = re.findall(r"`(everyway [a-z][^`\n]*)`", prose(document))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in [*commands(document), *spans]:
        words = shlex.split(line)
        if "everyway.apps.cli" in words:
            words = ["everyway", *words[words.index("everyway.apps.cli") + 1 :]]
        if words[0] == "everyway":
            cli.parser().parse_args(words[1:])  # raises UsageError
        elif words[0] == "make":
            assert set(words[1:]) <= targets, line
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line
        elif words[0].endswith(".sh"):
            assert (ROOT / words[0]).stat().st_mode & 0o111, line


# -- names ------------------------------------------------------------------------------------


@each(DOCUMENTS)
def test_links_lead_somewhere(document):
    text = prose(document)
    links = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    inside = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in inside if link and not (document.parent / link).exists()] == []


@each(DOCUMENTS)
def test_files_named_in_code_exist(document):
    """`names.py` and `folders/` from the root, the package or the document's folder."""
    spans = re.findall(rf"`([\w./-]+(?:\.(?:{SUFFIXES})|/))`", prose(document))
    places = (ROOT, ROOT / "src/everyway", document.parent)
    wanted = {s for s in spans if not s.startswith(("out/", "runs/"))}
    wanted -= TO_BE_WRITTEN | WRITTEN_BY_US
    assert {s for s in wanted if not any((place / s).exists() for place in places)} == set()


def test_what_a_reader_is_told_to_write_is_not_there():
    places = (ROOT, ROOT / "src/everyway")
    assert not [p for p in TO_BE_WRITTEN if any((place / p).exists() for place in places)]


# -- examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_examples_are_short_and_run(example, tmp_path):
    assert len(example.read_text(encoding="utf-8").splitlines()) < 80
    before = os.times()
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    after = os.times()
    assert after.children_user - before.children_user < 20  # of the processor, busy or not
