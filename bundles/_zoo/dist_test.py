# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates in one process a GPU, in two processes where there is none."""

import os
import shutil
import tempfile
import unittest

import torch
from utils import export_config_and_run_mgpu_cmd

ON_CPU = {"backend": "gloo", "device": "$torch.device('cpu')", "network#device_ids": None}


class TestBundleMultiGPU(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        scans = os.path.join(self.folder, "data")
        os.makedirs(scans)
        self.train_data, _ = make_data(scans)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def run_stage(self, stages, output_dir, **overrides):
        configs = os.path.join(BUNDLE_ROOT, "configs")
        folders = {"ckpt_dir": os.path.join(self.folder, "models"), "output_dir": os.path.join(self.folder, output_dir)}
        on_cpu = {} if torch.cuda.is_available() else ON_CPU
        export_config_and_run_mgpu_cmd(
            config_file=[os.path.join(configs, f"{stage}.json") for stage in stages],
            logging_file=os.path.join(configs, "logging.conf"),
            meta_file=os.path.join(configs, "metadata.json"),
            override_dict={"bundle_root": BUNDLE_ROOT, **folders, **self.train_data, **NETWORK, **on_cpu, **overrides},
            output_path=os.path.join(self.folder, f"{output_dir}.json"),
            ngpu=torch.cuda.device_count() or 2,
        )

    def test_train_and_evaluate_mgpu_config(self):
        self.run_stage(["train", "multi_gpu_train"], "trained", **TRAINING)
        self.assertTrue(os.path.isfile(os.path.join(self.folder, "models", "model.pt")))
        if os.path.isfile(os.path.join(BUNDLE_ROOT, "configs", "multi_gpu_evaluate.json")):
            self.run_stage(["train", "evaluate", "multi_gpu_evaluate"], "evaluated")
            self.assertTrue(os.listdir(os.path.join(self.folder, "evaluated")))


if __name__ == "__main__":
    unittest.main()
