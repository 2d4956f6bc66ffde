# SPDX-License-Identifier: Apache-2.0
"""What is kept of a study: a folder for each finished run, and the one table made of them."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import secrets
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..datasets.io.atomic_write import atomic_text
from ..datasets.io.csv_file import write_csv
from .plan import Run
from .study import Study, StudyError, content_hash, study_of

COLUMNS = (
    "run", "status", "stage", "arm", "labels", "patients", "fold", "seed", "rate", "steps", "score", "cases", "error",
    "weights_sha256", "train_seconds", "evaluate_seconds", "seconds", "device", "finished", "train_command",
    "evaluate_command",
)  # fmt: skip
"""Columns of ``runs.csv``."""

VOLATILE = ("train_seconds", "evaluate_seconds", "seconds", "device", "finished")
"""Columns that differ from one time a run is done to the next; all others are the run's result."""


class Results:
    """The folder of a study's results.

    ``runs/NAME/`` holds a finished run: ``row.json``, ``cases.csv`` and what else it left. The folder appears by one
    renaming when all is in it, so that a run is there whole or not at all, whatever ends the process. ``runs.csv`` is
    made of the rows; folders that other machines have filled are merged by copying them.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.runs = self.folder / "runs"
        self.work = self.folder / "work"

    def rows(self) -> dict[str, dict[str, Any]]:
        """Read the rows of all finished runs by name."""
        rows: dict[str, dict[str, Any]] = {}
        self.add_new(rows)
        return rows

    def add_new(self, rows: dict[str, dict[str, Any]]) -> None:
        """Add the rows of runs that have been finished since, by other processes perhaps.

        Args:
            rows: rows by name, which is extended.
        """
        for name in sorted(os.listdir(self.runs)) if self.runs.is_dir() else ():
            if name not in rows and (path := self.runs / name / "row.json").is_file():
                rows[name] = json.loads(path.read_text(encoding="utf-8"))

    def cases(self, name: str) -> list[dict[str, str]]:
        """Read the scores of each case of a run."""
        with (self.runs / name / "cases.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def begin(self, run: Run) -> Path:
        """Make an empty folder to do a run in."""
        folder = self.work / f"{run.name}@{_host()}@{os.getpid()}@{secrets.token_hex(3)}"
        (folder / "result").mkdir(parents=True)
        return folder

    def finish(self, run: Run, work: Path, row: Mapping[str, Any]) -> None:
        """Put what a run left in its place, and drop the folder that it was done in.

        Args:
            run: the run.
            work: its folder, see :meth:`begin`; what is in ``result`` is kept.
            row: its row.
        """
        result = work / "result"
        with atomic_text(result / "row.json") as file:
            file.write(json.dumps(row, indent=1) + "\n")
        self.runs.mkdir(parents=True, exist_ok=True)
        target = self.runs / run.name
        if target.exists():  # a failed run that is done again, or one that another process has done as well
            os.replace(target, work / "replaced")
        os.replace(result, target)
        shutil.rmtree(work, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what runs of processes that are gone have left unfinished, on this machine."""
        for folder in self.work.glob("*") if self.work.is_dir() else ():
            parts = folder.name.split("@")
            if len(parts) == 4 and parts[1] == _host() and not _alive(int(parts[2])):
                shutil.rmtree(folder, ignore_errors=True)

    def write_table(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Write ``runs.csv``, in the order of the runs' names."""
        table = [{"run": name, **_shown(rows[name])} for name in sorted(rows)]
        write_csv(self.folder / "runs.csv", COLUMNS, table)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {column: row.get(column, "") for column in COLUMNS[1:]}
    return {column: "" if value is None else value for column, value in texts.items()}


def _host() -> str:
    return platform.node().replace("@", "_").replace("/", "_") or "here"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


EXTENDABLE = ("arms", "labels", "seeds", "title", "description", "contrasts")
"""Keys that ``--extend`` may change: runs that are there keep their meaning."""


class Protocol:
    """``protocol.json``: what was fixed before the first run, and every later change with its time.

    Args:
        results: the study's results.
    """

    def __init__(self, results: Results) -> None:
        self.path = results.folder / "protocol.json"

    def read(self) -> dict[str, Any] | None:
        """Read the file, None where there is none."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else None

    def study(self, content: Mapping[str, Any]) -> Study:
        """Give the study as it is now.

        Args:
            content: of the file.
        """
        return study_of(content["versions"][-1]["study"], self.path)

    def fix(self, study: Study, extend: bool = False) -> dict[str, Any]:
        """Write down the study before its first run, or check that it is still the same.

        Args:
            study: the study.
            extend: whether arms, label counts and seeds may be added.

        Returns:
            The file's content.

        Raises:
            StudyError: when the study is not the one that the folder's runs are of.
        """
        content = self.read()
        if content is not None and content["versions"][-1]["sha256"] == study.hash:
            return content
        entry = {"time": now(), "sha256": study.hash, "study": dict(study.content), **_software()}
        if content is None:
            content = {"primary": dict(study.content["primary"]), "versions": [entry]}
        else:
            self._compare(content["versions"][-1]["study"], study, extend)
            content["versions"].append(entry)
        with atomic_text(self.path) as file:
            file.write(json.dumps(content, indent=1) + "\n")
        return content

    def _compare(self, old: Mapping[str, Any], study: Study, extend: bool) -> None:
        changed = [key for key in {**old, **study.content} if old.get(key) != study.content.get(key)]
        refused = [key for key in changed if key not in EXTENDABLE]
        for key in ("arms", "labels", "seeds"):
            kept = old[key].items() if key == "arms" else old[key]
            given = study.content[key].items() if key == "arms" else study.content[key]
            if any(each not in given for each in kept):
                refused.append(key)
        if refused or not extend:
            hint = "" if refused else "; --extend adds arms, label counts and seeds"
            raise StudyError(
                f"{study.path}: expected the study that {self.path} was begun with (sha256 {content_hash(old)[:12]}), "
                f"found other values of {', '.join(sorted(set(refused or changed)))}; name another --out folder{hint}"
            )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _software() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: installed(name) for name in ("models-genesis", "monai", "torch")},
    }


def installed(package: str) -> str:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def failures(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name the runs that failed, each with the reason."""
    return [f"{name}: {row['error']}" for name, row in sorted(rows.items()) if row["status"] != "done"]
