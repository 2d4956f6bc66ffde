# SPDX-License-Identifier: Apache-2.0
"""Write the unit tests that the model zoo keeps for each bundle, ``test_NAME.py`` and ``test_NAME_dist.py``.

The zoo wants each file complete in itself. They are put together from the modules in ``_zoo/``: the data of a kind of
bundle, the test of one process or that of several, and here what differs by bundle.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PARTS = Path(__file__).resolve().parent / "_zoo"

HEADER = """# Copyright (c) Models Genesis for MONAI contributors
# SPDX-License-Identifier: Apache-2.0
"""

NETWORK = {"features": [4, 8, 16], "cube_size": [16, 16, 16]}
TRAINING = {"epochs": 1, "warmup_epochs": 0, "val_interval": 1, "batch_size": 2}
FINE_TUNING = {**TRAINING, "pretrained": "none"}
CASES = {**FINE_TUNING, "cubes_per_case": 2}
CT = {"BACKGROUND": -1000, "TRAINING": CASES}

BUNDLES: dict[str, tuple[str, dict[str, Any]]] = {
    "genesis_chest_ct_pretraining": (
        "scan_data",
        {"TRAINING": {**TRAINING, "cubes_per_scan": 2, "val_cubes_per_scan": 2}},
    ),
    "genesis_lits_liver_ct_segmentation": (
        "segmentation_data",
        {**CT, "LABELS": {"0": "background", "1": "liver", "2": "tumour"}},
    ),
    "genesis_lidc_nodule_ct_segmentation": (
        "segmentation_data",
        {**CT, "LABELS": {"0": "background", "1": "nodule"}},
    ),
    "genesis_brats_mri_segmentation": (
        "segmentation_data",
        {
            "LABELS": {"0": "background", "1": "necrosis", "2": "oedema", "4": "enhancing tumour"},
            "TRAINING": CASES,
        },
    ),
    "genesis_msd_segmentation": (
        "segmentation_data",
        {"LABELS": {"0": "background", "1": "Anterior", "2": "Posterior"}, "TRAINING": CASES},
    ),
    "genesis_luna16_nodule_ct_classification": ("candidate_data", {"TRAINING": FINE_TUNING}),
    "genesis_pecad_embolism_ct_classification": ("candidate_data", {"TRAINING": FINE_TUNING}),
}
"""The kind of data and what differs, by bundle."""


def python_literal(name: str, value: Any) -> str:
    """Write an assignment as black lays it out.

    Example:
        >>> print(python_literal("EPOCHS", {"epochs": 1}))
        EPOCHS = {"epochs": 1}
    """
    line = f"{name} = {json.dumps(value)}"
    if len(line) <= 120:
        return line
    entries = [f"    {json.dumps(key)}: {json.dumps(each)}," for key, each in value.items()]
    return "\n".join([f"{name} = {{", *entries, "}"])


def _split(path: Path) -> tuple[str, set[str], dict[str, str], str]:
    """Give a module's docstring, its imports, its plain constants by name, and all else."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    tree = ast.parse(text)
    imports, constants, rest, docstring = set(), {}, 0, ast.get_docstring(tree) or ""
    for node in tree.body:
        source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.add(source)
        elif isinstance(node, ast.Assign):
            constants[ast.unparse(node.targets[0])] = source
        elif not isinstance(node, ast.Expr):
            rest = node.lineno
            break
    return docstring, imports, constants, "\n".join(lines[rest - 1 :])


def sorted_imports(imports: Iterable[str]) -> str:
    """Lay out imports as isort does: the standard library first, in each part ``import`` before ``from``."""
    groups: tuple[list[str], list[str]] = ([], [])
    for line in sorted(imports, key=lambda text: (text.startswith("from"), text.split()[1].lower())):
        module = line.split()[1].split(".")[0]
        groups[module not in sys.stdlib_module_names].append(line)
    return "\n\n".join("\n".join(group) for group in groups if group)


def unit_test(name: str, distributed: bool = False) -> str:
    """Give the text of a bundle's unit test.

    Args:
        name: the bundle.
        distributed: whether it is that of several processes.

    Raises:
        ValueError: when nothing is known of such a bundle.
    """
    if name not in BUNDLES:
        raise ValueError(f"bundles/zoo_tests.py: expected {name} in BUNDLES, found {', '.join(BUNDLES)}")
    kind, own = BUNDLES[name]
    _, data_imports, data_constants, data = _split(PARTS / f"{kind}.py")
    docstring, imports, constants, test = _split(PARTS / ("dist_test.py" if distributed else "unit_test.py"))
    data = data.partition("\n\n\ndef check_output")[0] if distributed else data
    values: Mapping[str, Any] = {"BUNDLE_ROOT": f"models/{name}", "NETWORK": NETWORK, **own}
    written = {key: python_literal(key, value) for key, value in values.items()}
    merged = {**constants, **data_constants, **written}
    used = data + test
    needed = {line for line in imports | data_imports if line.split()[-1] in used}
    parts = [
        f'{HEADER}"""{docstring}"""\n\n{sorted_imports(needed)}\n\n' + "\n".join(merged.values()),
        data.rstrip(),
        test.rstrip(),
    ]
    return "\n\n\n".join(parts) + "\n"


def unit_tests(names: Iterable[str]) -> dict[str, str]:
    """Give the unit tests of bundles by file name."""
    return {
        f"test_{name}{'_dist' if distributed else ''}.py": unit_test(name, distributed)
        for name in names
        for distributed in (False, True)
    }
