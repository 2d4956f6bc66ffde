# SPDX-License-Identifier: Apache-2.0
"""The one table of how the blocks of the documents are treated; whatever it does not name is checked.

Checked means: bash reads the block, the program's own parser takes each command, Python code compiles and its imports
and calls are right. A program or a language that neither is checked nor is named here makes a test fail, and so does
an entry here that nothing needs any more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

VARIABLES = {
    "docs/data-lists.md": {"nnUNet_raw": "/data/nnUNet_raw", "nnUNet_preprocessed": "/data/nnUNet_preprocessed"},
    "docs/formats.md": {"nnUNet_preprocessed": "/data/nnUNet_preprocessed"},
    "docs/how-to/large-corpora.md": {"SLURM_ARRAY_TASK_ID": "0"},
    "docs/how-to/many-nodes.md": {"SLURM_JOB_ID": "1", "SLURMD_NODENAME": "node1", "SLURM_CPUS_PER_TASK": "32"},
    "docs/monai-label.md": {"WEIGHTS": "models/model.pt", "CASE": "case"},
    "docs/publishing.md": {
        "B": "bundles/genesis_lits_liver_ct_segmentation",
        "DATA": "--dataset_dir /data/lits --datalist /data/lits/datalist.json",
    },
}
"""What a document says in words that the reader has set."""

FILES = {("docs/formats.md", "json"): "torchscript.json", ("docs/how-to/long-runs.md", "json"): "tracking.json"}
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
_NO_CLUSTER = Elsewhere("there is no cluster; docs/how-to/many-nodes.md says what was tried instead")
_STOCK = "tests/label/test_stock_app.py"
_GENESIS = "tests/label/test_genesis_app.py"
_NNUNET = "tests/networks/test_nnunet_training.py"
_AS_IT_STANDS = Elsewhere("make test-label, the block as it stands", "tests/label/test_viewer.py", "_as_documented(url")

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
    "curl --fail --silent --compressed http://127.0.0.1:8000/proxy/dicom/": _AS_IT_STANDS,
    "curl --fail -X POST http://127.0.0.1:8000/infer/": _AS_IT_STANDS,
    "curl --fail -X PUT http://127.0.0.1:8000/datastore/label": _AS_IT_STANDS,
    "curl -LO https://example.org/": Elsewhere("an address that stands for the reader's own"),
    "commandsManager.runCommand('storeSegmentation'": Elsewhere(
        "make test-label, in OHIF", "tests/label/test_viewer.py", "storeSegmentation"
    ),
    "apt-get install orthanc": Elsewhere("make test-label needs them", "tools/viewer.py", "orthanc-dicomweb"),
    "monailabel apps --download": Elsewhere("make test-label", _STOCK, '"apps", "--download"'),
    "monailabel start_server": Elsewhere("make test-label", "tests/label/conftest.py", '"start_server"'),
    "monailabel.client": Elsewhere("make test-label", _STOCK, "MONAILabelClient"),
    "nnUNetv2_plan_and_preprocess": Elsewhere("make test-nnunet", _NNUNET, '"nnUNetv2_plan_and_preprocess"'),
    "nnUNetv2_train": Elsewhere("make test-nnunet", _NNUNET, '"nnUNetv2_train"'),
    "nnUNetv2_evaluate_folder": Elsewhere("make test-nnunet", _NNUNET, '"nnUNetv2_evaluate_folder"'),
    "nnUNetv2_preprocess_like_nnssl": Elsewhere("where it is installed", _NNUNET, '"nnUNetv2_preprocess_like_nnssl"'),
    "nnUNetv2_train_pretrained": Elsewhere("where it is installed", _NNUNET, '"nnUNetv2_train_pretrained"'),
    "ray start": Elsewhere("make test", "tests/datasets/store/test_ray_cluster.py", '["start", "--head"'),
    "trtexec": Elsewhere("needs TensorRT; docs/formats.md says that it was not run"),
    "python -m build": Elsewhere("builds the wheel", "tests/test_packaging.py", "wheel"),
    "python -m twine": _BY_HAND,
    "apiVersion:": _NO_CLUSTER,
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


def elsewhere_of(text: str) -> str:
    """Find the entry of :data:`ELSEWHERE` for a command, a module or a block, the longest that fits in whole words."""
    fits = [first for first in ELSEWHERE if re.match(rf"{re.escape(first)}($|[ /?,]|(?<=/))", text)]
    return max(fits, key=len, default="")


SITE_LANGUAGES = {"{eval-rst}", "{glossary}", "{image}", "{toctree}"}
"""Blocks that lay out the site; ``tests/tools/test_build_docs.py`` builds it, where a warning is an error."""


# What follows is for the documents that are run.

SIZES: dict[str, str] = {
    "epochs": "2",
    "warmup_epochs": "0",
    "val_interval": "1",
    "cube_size": "[16,16,16]",
    "cubes_per_scan": "2",
    "val_cubes_per_scan": "2",
    "cubes_per_case": "1",
    "samples_per_epoch": "4",
    "val_negatives_per_positive": "1",
    "batch_size": "2",
    "device": "cpu",
}
"""Options that are put behind each training, those of them that its configs have; of two epochs, one can be lost."""

PRETRAINING_SIZES = {"features": "[4,8]", **SIZES}
"""Those of trainings that begin with random weights; others have the width of the weights that they begin with."""

CODE_SIZES = {"GenesisUNet(in_channels=1, ": "GenesisUNet(features=(4, 8), in_channels=1, "}
"""What small networks need in Python code that has the full ones' sizes by default."""

PAPER_SIZES = {"border": "4"}
"""The paper's border, of 100 voxels in-plane, is for scans of 512 x 512."""

SLICE_SIZES = {"cube_size": "[40,40]"}
"""Smaller slices cannot be shuffled as the paper's cubes are."""

NOT_RUN = {
    "make": "make knows the target; tests/tools/ tests what demo, gpu and docs run",
    "pip": "tests/test_packaging.py installs the wheel",
    "source": "the environment is this one",
    "torchrun": "two processes: the tests of the bundles, tests/bundles/",
}
"""Programs that documents are not run with, and why."""

_CARD = "bundles/genesis_{}/docs/README.md".format
_RECORD = "how the enclosed weights or the numbers came about, on data that are not part of the project"

BLOCKS_LEFT_OUT = {
    (_CARD("chest_ct_pretraining"), "docs/evidence/ct_longer.pretraining.json"): Elsewhere(_RECORD),
    (_CARD("chest_ct_pretraining"), "docs/real_ct_datalist.json"): Elsewhere(_RECORD),
    (_CARD("lits_liver_ct_segmentation"), "--pretrained WEIGHTS"): Elsewhere(_RECORD),
    (_CARD("luna16_nodule_ct_classification"), "tools/small_nodule_set.py"): Elsewhere(_RECORD),
    ("docs/formats.md", "onnx_export"): Elsewhere("as documented", "tests/networks/test_onnx.py", "onnx_export"),
    ("docs/formats.md", "import onnxruntime"): Elsewhere(
        "as documented", "tests/networks/test_onnx.py", "(import onnxruntime"
    ),
    ("docs/formats.md", "trt_export"): Elsewhere("needs TensorRT; docs/formats.md says that it was not run"),
    ("docs/formats.md", "nnunet-checkpoint"): Elsewhere("make test-nnunet", _NNUNET, '"nnunet-checkpoint"'),
}
"""Blocks of the documents that are run, by a part of their text, that are not run themselves; checked they are."""

LINES_LEFT_OUT = {
    '"OWNER/NAME"': Elsewhere("with a hub on this machine", "tests/networks/test_hub.py", "push_to_hub"),
}
"""Lines of Python blocks, by a part of their text, that are not run."""
