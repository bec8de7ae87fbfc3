"""PyTorch's models, exported by torch.onnx. The sequence models read the row as a sequence, as the first-N columns are one."""

import io

import numpy as np
import onnx
import torch
from torch import nn

from make import FEATURES, ROWS, SEED, TARGETS, TRAIN, split

LIBRARY = f"PyTorch {torch.__version__.split('+')[0]}"
STEPS = 6


class Sequence(nn.Module):
    """Base of the sequence models: a row is STEPS steps of FEATURES / STEPS values."""

    def steps(self, rows):
        return rows.reshape(-1, STEPS, FEATURES // STEPS)


class Gru(Sequence):
    def __init__(self, labels):
        super().__init__()
        self.gru = nn.GRU(FEATURES // STEPS, 12, batch_first=True)
        self.last = nn.Linear(12, labels)

    def forward(self, rows):
        _, state = self.gru(self.steps(rows))
        return torch.softmax(self.last(state[0]), dim=1)


class Lstm(Sequence):
    def __init__(self, labels):
        super().__init__()
        self.lstm = nn.LSTM(FEATURES // STEPS, 10, batch_first=True)
        self.last = nn.Linear(10, labels)

    def forward(self, rows):
        states, _ = self.lstm(self.steps(rows))
        return torch.softmax(self.last(states[:, -1]), dim=1)


class Cnn(Sequence):
    def __init__(self, labels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(FEATURES // STEPS, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, labels),
        )

    def forward(self, rows):
        return torch.softmax(self.layers(self.steps(rows).transpose(1, 2)), dim=1)


def mlp(labels, *last):
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.ReLU(), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, labels), *last
    )


def autoencoder():
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, FEATURES))


class Anomaly(nn.Module):
    """Mean squared error of an autoencoder: one value per row."""

    def __init__(self):
        super().__init__()
        self.inner = autoencoder()

    def forward(self, rows):
        return ((self.inner(rows) - rows) ** 2).mean(dim=1, keepdim=True)


def train(model, rows, loss):
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    for _ in range(60):
        optimiser.zero_grad()
        loss(model(rows)).backward()
        optimiser.step()
    model.eval()


def run(cases):
    torch.set_num_threads(1)
    scale = np.array([1.0] * 6 + [0.05] * 3 + [1.0] * 3, dtype=np.float32)
    known, unknown = split(ROWS)

    def add(name, model, loss, key):
        torch.manual_seed(SEED)
        # The scaling belongs to the graph: it is given raw columns.
        whole = nn.Sequential(Scaled(torch.from_numpy(scale)), model)
        train(whole, torch.from_numpy(known), loss)
        file = io.BytesIO()
        torch.onnx.export(
            whole, torch.from_numpy(unknown[:3]), file, input_names=["x"], output_names=[key], opset_version=17,
            dynamic_axes={"x": {0: "N"}, key: {0: "N"}}, dynamo=False,
        )
        exported = onnx.load_from_string(file.getvalue())
        with torch.no_grad():
            expected = whole(torch.from_numpy(unknown)).numpy()
        extra = {"labels": expected.argmax(axis=1)} if key == "probabilities" else {}
        # There is no output of labels: the most probable one is it.
        cases.add(f"torch_{name}", LIBRARY, exported, {key: key}, **{key: expected}, **extra)

    for target, labels in (("binary", 2), ("multi", 4)):
        wanted = torch.from_numpy(TARGETS[target][:TRAIN])

        def loss(out, wanted=wanted):
            return nn.functional.nll_loss(torch.log(out + 1e-9), wanted)

        torch.manual_seed(SEED)
        for name, model in (("mlp", mlp(labels, nn.Softmax(dim=1))), ("gru", Gru(labels)), ("lstm", Lstm(labels)), ("cnn", Cnn(labels))):
            add(f"{name}_{target}", model, loss, "probabilities")
    values = torch.from_numpy(TARGETS["value"][:TRAIN].astype(np.float32)).reshape(-1, 1)
    add("mlp_value", mlp(1), lambda out: ((out - values) ** 2).mean(), "values")
    rows = torch.from_numpy(known) * torch.from_numpy(scale)
    add("autoencoder", autoencoder(), lambda out: ((out - rows) ** 2).mean(), "values")
    add("anomaly", Anomaly(), lambda out: out.mean(), "values")


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, rows):
        return rows * self.scale
