# SPDX-License-Identifier: Apache-2.0
"""The one table of how the blocks of the documents are treated; whatever it does not name is checked.

Checked means: bash reads the block, the program's own parser takes each command, Python code compiles and its imports
and calls are right. A program or a language that neither is checked nor is named here makes a test fail, and so does
an entry here that nothing needs any more.
"""

from __future__ import annotations

from dataclasses import dataclass

VARIABLES = {
    "docs/data-lists.md": {"nnUNet_raw": "/data/nnUNet_raw", "nnUNet_preprocessed": "/data/nnUNet_preprocessed"},
    "docs/formats.md": {"nnUNet_preprocessed": "/data/nnUNet_preprocessed"},
    "docs/monai-label.md": {"WEIGHTS": "models/model.pt", "CASE": "case"},
    "docs/publishing.md": {
        "B": "bundles/genesis_lits_liver_ct_segmentation",
        "DATA": "--dataset_dir /data/lits --datalist /data/lits/datalist.json",
    },
}
"""What a document says in words that the reader has set."""

FILES = {("docs/formats.md", "json"): "torchscript.json"}
"""Blocks, by document and language, that the reader writes to a file."""

ABSENT = {"nnunet.json": "written by nnunet-config from a plans file of nnU-Net"}
"""Config files that another command of the block writes where nnU-Net is; the others of the command are checked."""

SCRIPTS = {
    "../models-genesis/bundles/build.py": "bundles/build.py",
    "hub/unpack.py": "bundles/unpack.py",
    "unpack.py": "bundles/unpack.py",
}
"""Copies of the project's scripts, and the scripts that they are copies of."""

SHELL_TOOLS = {"cd", "cp", "rm", "source"}
"""Programs that need no check."""


@dataclass(frozen=True)
class Elsewhere:
    """Commands that are not checked here.

    Args:
        reason: where they are run, or why nowhere.
        test: the file of the project that runs them; empty where nothing does.
        trace: text of that file that shows it.
    """

    reason: str
    test: str = ""
    trace: str = ""


_BY_HAND = Elsewhere("needs an account or sends things out; docs/publishing.md says what was tried")
_STOCK = "tests/label/test_stock_app.py"
_GENESIS = "tests/label/test_genesis_app.py"
_NNUNET = "tests/networks/test_nnunet_training.py"

ELSEWHERE = {
    "curl --fail http://127.0.0.1:8123/info/": Elsewhere("make test-label", _STOCK, '"/info/"'),
    "curl --fail -X POST http://127.0.0.1:8123/infer/": Elsewhere(
        "make test-label", "tests/label/conftest.py", "/infer/"
    ),
    "curl --fail -X PUT http://127.0.0.1:8123/datastore/label": Elsewhere("make test-label", _STOCK, "save_label("),
    "curl --fail http://127.0.0.1:8123/datastore/": Elsewhere("make test-label", _GENESIS, '"/datastore/"'),
    "curl --fail -X POST http://127.0.0.1:8123/train/": Elsewhere("make test-label", _GENESIS, '.post(f"/train/'),
    "curl --fail http://127.0.0.1:8123/train/": Elsewhere("make test-label", _GENESIS, '.get("/train/"'),
    "curl --fail -X DELETE http://127.0.0.1:8123/train/": Elsewhere("make test-label", _GENESIS, '.delete("/train/"'),
    "curl --fail -X POST http://127.0.0.1:8123/activelearning/": Elsewhere(
        "make test-label", _GENESIS, '"/activelearning/'
    ),
    "curl --fail http://127.0.0.1:8123/scoring/": Elsewhere("make test-label", _GENESIS, '"/scoring/'),
    "curl -LO https://example.org/": Elsewhere("an address that stands for the reader's own"),
    "monailabel apps --download": Elsewhere("make test-label", _STOCK, '"apps", "--download"'),
    "monailabel start_server": Elsewhere("make test-label", "tests/label/conftest.py", '"start_server"'),
    "monailabel.client": Elsewhere("make test-label", _STOCK, "MONAILabelClient"),
    "nnUNetv2_plan_and_preprocess": Elsewhere("make test-nnunet", _NNUNET, '"nnUNetv2_plan_and_preprocess"'),
    "nnUNetv2_train ": Elsewhere("make test-nnunet", _NNUNET, '"nnUNetv2_train"'),
    "nnUNetv2_evaluate_folder": Elsewhere("make test-nnunet", _NNUNET, '"nnUNetv2_evaluate_folder"'),
    "nnUNetv2_preprocess_like_nnssl": Elsewhere("where it is installed", _NNUNET, '"nnUNetv2_preprocess_like_nnssl"'),
    "nnUNetv2_train_pretrained": Elsewhere("where it is installed", _NNUNET, '"nnUNetv2_train_pretrained"'),
    "trtexec": Elsewhere("needs TensorRT; docs/formats.md says that it was not run"),
    "python -m build": Elsewhere("builds the wheel", "tests/test_packaging.py", "wheel"),
    "python -m twine": _BY_HAND,
    "git": _BY_HAND,
    "./runtests.sh": Elsewhere("the model zoo's own", "tests/bundles/test_zoo_pull_request.py", "isort"),
    "python ci/unit_tests/runner.py": Elsewhere(
        "the zoo's own", "tests/bundles/test_zoo_pull_request.py", "run_unit_tests"
    ),
    "hf": _BY_HAND,
    "gh": _BY_HAND,
    "ngc": _BY_HAND,
}
"""Commands by their first words, and modules, that need what is not installed here."""

SITE_LANGUAGES = {"{eval-rst}", "{glossary}", "{image}", "{toctree}"}
"""Blocks that lay out the site; ``tests/tools/test_build_docs.py`` builds it, where a warning is an error."""
