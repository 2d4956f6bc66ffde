# SPDX-License-Identifier: Apache-2.0
"""Every block and command of the documents is one that the programs accept, or one that is run elsewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import document_table as table
import pytest
from document_blocks import ROOT, Block, blocks_in, blocks_of, documents, spans_of
from document_commands import CommandError, check, check_code
from document_shell import Answer, Command, read_blocks

DOCUMENTS = [document for document in documents() if blocks_of(document)]
PLACEHOLDER = re.compile(r"[A-Z]{2,}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder that has what the project's folder has."""
    folder = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@dataclass(frozen=True)
class Checked:
    """What was found: faults and commands by document, and the entries of the table that were needed."""

    faults: dict[str, list[str]]
    commands: dict[str, list[Command]]
    used: set[str]


@pytest.fixture(scope="module")
def checked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """All documents, checked."""
    checked = Checked({}, {name: [] for name in DOCUMENTS}, set())
    for name, commands in checked.commands.items():
        scratch = tmp_path_factory.mktemp("scratch")
        checked.faults[name] = faults_of(blocks_of(name), folder, scratch, checked.used, commands)
    return checked


def as_here(command: Command) -> Command:
    """Put the project's scripts in place of copies, and leave out config files that are not there."""
    words = [table.SCRIPTS.get(word, word) for word in command.words]
    for name in table.ABSENT:
        words = [word.replace(f",'{name}'", "") for word in words]
    return replace(command, words=tuple(words))


def faults_of(
    blocks: list[Block], folder: Path, scratch: Path, used: set[str], commands: list[Command] | None = None
) -> list[str]:
    """Check blocks of one document; what of the table they needed is added to ``used``, each call to ``commands``."""
    faults: list[str] = []

    def look(block: Block, command: Command) -> Answer:
        if commands is not None and command.words:
            commands.append(command)
        try:
            check_one(block, command, folder, used)
        except (CommandError, json.JSONDecodeError) as error:
            faults.append(f"{block.place}: {error}")
        return Answer()

    paths = [name for name in table.ELSEWHERE if name.startswith("./")]
    variables = table.VARIABLES.get(blocks[0].document, {})
    read_blocks(blocks, folder, scratch, look, variables, change_folders=False, paths=paths)
    return faults


def check_one(block: Block, command: Command, folder: Path, used: set[str]) -> None:
    """Check a command of a block, or, without words, a whole block that is not bash."""
    if command.words:
        text = " ".join(command.words)
        used |= {
            word for word in (*command.words, command.words[0]) if word in table.SCRIPTS or word in table.SHELL_TOOLS
        }
        used |= {name for name in table.ABSENT if name in text}
        if first := table.elsewhere_of(text):
            used.add(first)
        elif command.words[0] not in table.SHELL_TOOLS:
            check(as_here(command))
    elif block.language == "python":
        modules = re.findall(r"^(?:from|import) ([\w.]+)", block.text, re.MULTILINE)
        away = set(filter(None, map(table.elsewhere_of, modules)))
        used |= away
        if not away:
            check_code(block.text)
    elif (block.document, block.language) in table.FILES:
        used.add(block.language)
        json.loads(block.text)
        (folder / table.FILES[block.document, block.language]).write_text(block.text, encoding="utf-8")
    elif first := table.elsewhere_of(block.text):
        used.add(first)
    elif block.language.split(" ")[0] in table.SITE_LANGUAGES:
        used.add(block.language.split(" ")[0])
    else:
        raise CommandError(f"expected a block that is checked or is in the table, found {block.language!r}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_is_accepted_or_run_elsewhere(document: str, checked: Checked) -> None:
    assert checked.faults[document] == []


def test_every_run_of_a_bundle_says_where_it_writes(checked: Checked) -> None:
    """Else it writes to the bundle's own folder, and replaces what the run before has written there."""
    runs = [
        command
        for commands in checked.commands.values()
        for command in commands
        if ("monai.bundle", "run") in zip(command.words, command.words[1:], strict=False)
    ]
    assert len(runs) > 50
    assert [str(run) for run in runs if "--output_dir" not in run.words] == []


def test_nothing_in_the_table_is_left_over(checked: Checked) -> None:
    entries = {*table.ELSEWHERE, *table.SCRIPTS, *table.ABSENT, *table.SHELL_TOOLS, *table.SITE_LANGUAGES}
    entries |= {language for _, language in table.FILES}
    assert entries - checked.used == set()
    for document, variables in table.VARIABLES.items():
        text = "".join(block.text for block in blocks_of(document))
        assert [name for name in variables if f"${name}" not in text] == []


def test_what_is_left_out_of_the_documents_that_are_run_is_there() -> None:
    for document, part in table.BLOCKS_LEFT_OUT:
        assert len([block for block in blocks_of(document) if part in block.text]) == 1, part
    text = "".join(block.text for document in DOCUMENTS for block in blocks_of(document))
    assert [part for part in (*table.LINES_LEFT_OUT, *table.CODE_SIZES) if part not in text] == []


ENTRIES = {**table.ELSEWHERE, **table.BLOCKS_LEFT_OUT, **table.LINES_LEFT_OUT}


@pytest.mark.parametrize("key", ENTRIES, ids=str)
def test_what_is_run_elsewhere_is(key: str | tuple[str, str]) -> None:
    entry = ENTRIES[key]
    assert entry.reason
    assert not entry.test or (entry.trace and entry.trace in (ROOT / entry.test).read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", documents())
def test_commands_in_sentences_exist(document: str, folder: Path) -> None:
    """They may leave out arguments, and say in capitals or by dots what the reader has to put there."""
    for span in spans_of(document):
        if re.match(r"(python|torchrun|make|pip) [^=]*$", span.text) and not table.elsewhere_of(span.text):
            words = [word for word in shlex.split(span.text) if word.strip(".")]
            placeholder = next((i for i, word in enumerate(words) if PLACEHOLDER.fullmatch(word)), len(words))
            complete = words[:placeholder] if placeholder == 3 else words
            try:
                check(Command(tuple(complete), folder, ""), incomplete=True)
            except CommandError as error:
                pytest.fail(f"{span.place}: {error}")


BUNDLE = "bundles/genesis_lits_liver_ct_segmentation"
RUN = f"python -m monai.bundle run --config_file {BUNDLE}/configs/train.json --bundle_root {BUNDLE}"
FAULTS = {
    "a program without a check": ("bash", "wget https://example.org", "no check for this program"),
    "a language without a check": ("yaml", "a: 1", "expected a block that is checked or is in the table"),
    "a variable that is not set": ("bash", "make $NOTHING", "NOTHING: unbound variable"),
    "a quote that is not closed": ("bash", "make 'demo", "unexpected EOF"),
    "a target that is gone": ("bash", "make demonstration", "No rule to make target"),
    "an extra that is gone": ("bash", "pip install '.[gone]'", r"setup.cfg has no extras \['gone'\]"),
    "a script that is gone": ("bash", "python tools/gone.py", "expected a module or a script of the project"),
    "a module that is gone": ("bash", "python -m models_genesis.gone", "No module named"),
    "a command that is gone": ("bash", "python -m models_genesis.datasets gone", "invalid choice: 'gone'"),
    "an option that is gone": ("bash", "python tools/demo.py --gone 1", "unrecognized arguments: --gone 1"),
    "a value of another type": ("bash", "python tools/gpu_check.py --minutes few", "invalid float value: 'few'"),
    "an option that is left out": ("bash", "python -m models_genesis.datasets lits --root d", "required: --out"),
    "a config that is gone": ("bash", RUN.replace("train.json", "gone.json"), "gone.json"),
    "a bundle that is gone": ("bash", RUN.replace(f"root {BUNDLE}", "root bundles/gone"), "found no bundles/gone"),
    "a key that is gone": ("bash", f"{RUN} --epoch 1", "did you mean --epochs"),
    "a nested key that is gone": ("bash", f"{RUN} --train#gone#prob 1", "train#gone"),
    "an argument that is gone": ("bash", f"{RUN} --train#run#gone 1", "unexpected keyword argument 'gone'"),
    "a key of another type": ("bash", f"{RUN} --cube_size 64", "--cube_size: expected a list of 3"),
    "a key of another type in two processes": (
        "bash", f"torchrun --nproc_per_node=2 {RUN.removeprefix('python ')} --epochs few", "--epochs: expected a whole",
    ),
    "a key of another type in a queue": ("bash", f"srun {RUN} --epochs few", "--epochs: expected a whole"),
    "a command of MONAI that is gone": ("bash", "python -m monai.bundle gone", "monai.bundle has no command gone"),
    "an argument of MONAI that is gone": ("bash", "python -m monai.bundle download --names a", "unexpected|names"),
    "a block that ends the shell": ("bash", "make demo && exit", "expected commands one after the other"),
    "a command that is not reached": ("bash", "make demo || python -m models_genesis.gone", "one after the other"),
    "a branch": ("bash", "if make demo; then make gone; fi", "one after the other"),
    "a program whose name begins like another's": ("bash", "gitx push", "no check for this program"),
    "code that does not compile": ("python", "x = (", "was never closed"),
    "a name that is gone": ("python", "from models_genesis.networks import Gone", "cannot import name 'Gone'"),
    "an attribute that is gone": ("python", "import numpy\nnumpy.gone(1)", "has no gone"),
    "an argument that a function does not take": (
        "python", "from models_genesis.networks import GenesisUNet\nGenesisUNet(gone=1)", "keyword argument 'gone'",
    ),
    "a here-document of such code": ("bash", "python - <<'X'\nimport gone\nX", "No module named 'gone'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_place_told(name: str, folder: Path, tmp_path: Path) -> None:
    language, text, message = FAULTS[name]
    blocks = blocks_in("page.md", f"# Page\n\n```bash\nmake test\n```\n\n```{language}\n{text}\n```\n")
    try:
        faults = faults_of(blocks, folder, tmp_path, set())
    except (RuntimeError, ValueError) as error:  # of bash itself, or of a block that it is not given
        faults = [str(error)]
    (fault,) = faults
    assert re.search(message, fault)
    assert fault.startswith("page.md:")


def test_a_block_in_a_quotation_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match=r"page\.md:2: expected blocks outside of quotations"):
        blocks_in("page.md", "> note\n> ```bash\n> make gone\n> ```\n")


def test_an_option_in_a_sentence_is_compared_though_required_ones_are_missing(folder: Path) -> None:
    words = ("python", "-m", "models_genesis.datasets", "lits")
    check(Command(words, folder, ""), incomplete=True)
    with pytest.raises(CommandError, match="unrecognized arguments: --gone"):
        check(Command((*words, "--gone"), folder, ""), incomplete=True)


def test_a_check_leaves_the_modules_of_the_other_tests_alone(folder: Path) -> None:
    import models_genesis.networks.weight_files

    before = dict(sys.modules)
    for module in ("models_genesis.networks", "models_genesis.training", "benchmarks.deformations"):
        check(Command(("python", "-m", module, "--help"), folder, ""))
    for name in {name.partition(".")[0] for name in sys.modules}:  # a parent that was taken out would be made anew
        assert name in sys.modules
    assert {name: sys.modules.get(name) for name in before} == before
    assert models_genesis.networks.weight_files is before["models_genesis.networks.weight_files"]


def test_bash_hands_over_what_a_reader_means(tmp_path: Path) -> None:
    """Variables live on, comments and continued lines go, and what a command prints can be redirected."""
    text = """# Page

```bash
B="two words"   # a comment
first $B "$B" 'as $B' \\
    --last
```

- a list

  ```bash
  second "$B" > said.txt && third $(cat said.txt)
  ```

```python
code
```
"""
    said = tmp_path / "output"
    said.write_text("words\n")
    calls = []

    def note(block: Block, command: Command) -> Answer:
        calls.append((block.place, command.words))
        return Answer(output=said)

    (tmp_path / "scratch").mkdir()
    read_blocks(blocks_in("page.md", text), tmp_path, tmp_path / "scratch", note, {}, change_folders=True)
    assert calls == [
        ("page.md:4", ("first", "two", "words", "two words", "as $B", "--last")),
        ("page.md:12", ("second", "two words")),
        ("page.md:12", ("cat", "said.txt")),
        ("page.md:12", ("third", "words")),
        ("page.md:16", ()),
    ]
    assert (tmp_path / "said.txt").read_text().strip() == "words"


def test_a_block_that_is_not_closed_is_named() -> None:
    with pytest.raises(ValueError, match=r"page\.md:2: expected the end of the block"):
        blocks_in("page.md", "text\n```bash\nmake test\n")
