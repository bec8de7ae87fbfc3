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

    def test_rows_are_read_by_name_and_what_is_wrong_is_one_line(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rows.csv")
            path.write_text("a,label,b\n1,benign,\n2,scan,4\n")
            rows, labels = contract.read_rows(path, ["b", "a"])
            np.testing.assert_array_equal(rows, np.array([[np.nan, 1], [4, 2]], dtype=np.float32))
            self.assertEqual(list(labels), ["benign", "scan"])
            for text, wrong in (("a\n1\n", "no column b"), ("a,b\n", "no rows"), ("a,b\nx,1\n", "no number"), ("a,b\n1\n", "more or fewer"), ("", "CSV")):
                path.write_text(text)
                with self.assertRaisesRegex(SystemExit, wrong):
                    contract.read_rows(path, ["b", "a"])

    def test_rows_of_parquet(self):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            self.skipTest("no pyarrow")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rows.parquet")
            pyarrow.parquet.write_table(pyarrow.table({"a": [1.0, None], "label": ["benign", None]}), path)
            rows, labels = contract.read_rows(path, ["a"])
            np.testing.assert_array_equal(rows, np.array([[1], [np.nan]], dtype=np.float32))
            self.assertEqual(labels, ["benign", None])
            path.write_bytes(b"no parquet")
            with self.assertRaisesRegex(SystemExit, "Parquet"):
                contract.read_rows(path, ["a"])

    def test_maps_of_a_zipmap_are_rows(self):
        session = mock.MagicMock()
        session.get_outputs.return_value = [mock.Mock(), mock.Mock()]
        session.get_outputs.return_value[0].name, session.get_outputs.return_value[1].name = "label", "output_probability"
        session.run.return_value = [[{0: 0.75, 1: 0.25}, {0: 0.5, 1: 0.5}]]
        runtime = mock.Mock(InferenceSession=mock.Mock(return_value=session))
        with mock.patch.dict(sys.modules, {"onnxruntime": runtime}):
            found = contract.run(Path("m.onnx"), None, np.zeros((2, 3), dtype=np.float32))
            np.testing.assert_array_equal(found, [[0.75, 0.25], [0.5, 0.5]])
            with self.assertRaisesRegex(SystemExit, "no output x"):
                contract.run(Path("m.onnx"), "x", np.zeros((2, 3), dtype=np.float32))
            session.run.side_effect = RuntimeError("first line\nsecond")
            with self.assertRaisesRegex(SystemExit, "first line$"):
                contract.run(Path("m.onnx"), None, np.zeros((2, 3), dtype=np.float32))

    def test_labels_the_wrong_way_round_are_refused(self):
        outputs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]])
        labels = ["benign", "scan"]
        contract.check_labels(outputs, labels, 0.9, ["benign", "benign", "scan"])
        contract.check_labels(outputs, labels, 0.9, None)
        with self.assertRaisesRegex(SystemExit, "is benign the benign label"):
            contract.check_labels(outputs[:, ::-1], labels, 0.9, ["benign", "benign", "scan"])
        with self.assertRaisesRegex(SystemExit, "is benign the benign label"):
            contract.check_labels(outputs[:, ::-1], labels, 0.9, None)
        with self.assertRaisesRegex(SystemExit, "2 numbers per row"):
            contract.check_labels(outputs, labels + ["flood"], 0.9, None)
        with self.assertRaisesRegex(SystemExit, "imputer"):
            contract.check_labels(outputs * np.nan, labels, 0.9, None)

    def test_an_agent_that_is_not_there_is_one_line(self):
        with self.assertRaisesRegex(SystemExit, "--sensor PATH"):
            contract.agent("/no/such/agent", ["a"])
        with self.assertRaisesRegex(SystemExit, "failed"):
            contract.agent("false", ["a"])

    def test_booleans_become_integers_for_exporters(self):
        try:
            import onnx.helper
        except ImportError:
            self.skipTest("no onnx")
        make_attribute = onnx.helper.make_attribute
        try:
            contract.mend_exporters()
            attribute = onnx.helper.make_attribute("nodes_missing_value_tracks_true", [True, np.False_])
        finally:
            onnx.helper.make_attribute = make_attribute
        self.assertEqual(list(attribute.ints), [1, 0])

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
