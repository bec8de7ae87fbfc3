"""Tests of contract.py: python3 -m unittest discover models. They need numpy, that of the command needs onnx."""

import sys
import tempfile
import tomllib
import unittest
from pathlib import Path
from unittest import mock

import numpy as np

import contract


class Contract(unittest.TestCase):
    def test_toml_gives_back_what_was_written(self):
        text = 'quotes " \\ and lines\n, \x01 \x7f \x85, é, 😀'
        keys = {"trained_on": text, "training": {text: [1, 2.5, True]}, "golden_inputs": [[0.0, 1e-7, -3e30]]}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx.toml")
            contract.side_car(keys, path)
            self.assertEqual(tomllib.loads(path.read_text(encoding="utf-8")), keys)

    def test_only_a_contract_is_written_over(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx.toml")
            for text in ('mode = "observe"\n', "no toml"):
                path.write_text(text)
                with self.assertRaises(SystemExit):
                    contract.side_car({"contract_version": 3}, path)
                self.assertEqual(path.read_text(), text)
            path.write_text("contract_version = 1\n")
            contract.side_car({"contract_version": 3}, path)
            self.assertEqual(path.read_text(), "contract_version = 3\n")

    def test_a_curve_ascends_in_32_bits_and_ends_above_all_training_flows(self):
        for raw in ([1e6] * 100, [-3e8] * 100, [0.0] * 100, np.linspace(1000, 1000.001, 500)):
            points = np.array(contract.curve(raw), dtype=np.float32)
            self.assertTrue((np.diff(points, axis=0) > 0).all(), points)
            self.assertEqual(points[-1][1], 1)
            self.assertLess(np.interp(np.float32(max(raw)), *points.T), 1)

    def test_a_side_car_that_would_be_ignored_is_refused(self):
        try:
            import onnx
        except ImportError:
            self.skipTest("no onnx")
        graph = onnx.helper.make_graph([], "empty", [], [])
        model = onnx.helper.make_model(graph)
        contract.attach(model, {"kind": "classifier"})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            onnx.save(model, path)
            words = ["contract.py", str(path), "--features", "a", "--threshold", "1", "--rows", "none", "--side-car"]
            with mock.patch.object(sys, "argv", words), self.assertRaisesRegex(SystemExit, "keys of its own"):
                contract.main()


if __name__ == "__main__":
    unittest.main()
