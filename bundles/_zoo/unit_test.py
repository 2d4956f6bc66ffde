# SPDX-License-Identifier: Apache-2.0
"""Trains, evaluates and infers in this process."""

import os
import shutil
import tempfile
import unittest

from monai.bundle import ConfigWorkflow
from utils import check_workflow


def test_order(name, other):
    """Let the runner train first: evaluation and inference use the weights."""
    order = ["test_train_config", "test_evaluate_config", "test_infer_config"]
    return order.index(name) - order.index(other)


class TestBundle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        scans = os.path.join(cls.folder, "data")
        os.makedirs(scans)
        cls.train_data, cls.infer_data = make_data(scans)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def run_stage(self, workflow_type, stages, output_dir, **overrides):
        configs = os.path.join(BUNDLE_ROOT, "configs")
        workflow = ConfigWorkflow(
            workflow_type=workflow_type,
            config_file=[os.path.join(configs, f"{stage}.json") for stage in stages],
            logging_file=os.path.join(configs, "logging.conf"),
            meta_file=os.path.join(configs, "metadata.json"),
            bundle_root=BUNDLE_ROOT,
            ckpt_dir=os.path.join(self.folder, "models"),
            output_dir=os.path.join(self.folder, output_dir),
            **overrides,
        )
        check_workflow(workflow, check_properties=True)

    def test_train_config(self):
        self.run_stage("train", ["train"], "trained", **self.train_data, **NETWORK, **TRAINING)
        self.assertTrue(os.path.isfile(os.path.join(self.folder, "models", "model.pt")))

    def test_evaluate_config(self):
        self.run_stage("train", ["train", "evaluate"], "evaluated", **self.train_data, **NETWORK)
        self.assertTrue(os.listdir(os.path.join(self.folder, "evaluated")))

    def test_infer_config(self):
        self.run_stage("infer", ["inference"], "inferred", **self.infer_data)
        check_output(self, os.path.join(self.folder, "inferred"))


if __name__ == "__main__":
    loader = unittest.TestLoader()
    loader.sortTestMethodsUsing = test_order
    unittest.main(testLoader=loader)
