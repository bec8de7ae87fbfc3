"""Scores, the threshold, and what the model does on captures that it has not seen."""

import numpy as np

from dataset import LABELS, SNAPSHOTS


def by_flow(rows, scores):
    """Highest score of each flow: flow, label, capture, score. A flow is flagged if any of its rows is."""
    flows, first, inverse = np.unique(rows.flow, return_index=True, return_inverse=True)
    highest = np.zeros(len(flows))
    np.maximum.at(highest, inverse, scores)
    return flows, rows.label[first], rows.capture[first], highest


def calibrate(rows, scores, floor=0.9, ceiling=0.9999):
    """The threshold: above every benign flow of the calibration captures, and never below `floor`.

    Up to one flow in 1,000 may stay above it, so that a single odd or mislabelled flow does not decide.
    """
    _, label, _, highest = by_flow(rows, scores)
    benign = np.sort(highest[label == 0])[::-1]
    spare = len(benign) // 1000
    top = benign[spare] if len(benign) > spare else 0.0
    return float(np.float32(min(max(floor, top + (1.0 - top) * 0.1), ceiling)))


def upper_bound(hits, count):
    """95 % upper bound of a rate: Clopper-Pearson; for no hits, nearly 3/n (the rule of three)."""
    from scipy.stats import beta

    return float(beta.ppf(0.95, hits + 1, count - hits)) if count > hits else 1.0


def report(rows, probabilities, threshold):
    """Everything the card prints of one part."""
    scores = 1.0 - probabilities[:, 0]
    _, label, capture, highest = by_flow(rows, scores)
    benign = label == 0
    false = int((highest[benign] >= threshold).sum())
    result = {"benign": int(benign.sum()), "false": false, "bound": upper_bound(false, int(benign.sum())), "labels": {}}
    named = probabilities[:, 1:].argmax(axis=1) + 1
    for number, name in enumerate(LABELS[1:], 1):
        of_label = label == number
        flagged = scores >= threshold
        right = (rows.label == number) & flagged
        result["labels"][name] = {
            "flows": int(of_label.sum()),
            "found": int((highest[of_label] >= threshold).sum()),
            "named": float((named[right] == number).mean()) if right.any() else float("nan"),
        }
    result["snapshots"] = [snapshot(rows, scores, threshold, packets) for packets in SNAPSHOTS]
    result["captures"] = []
    for name in np.unique(capture):
        for number in range(len(LABELS)):
            both = (capture == name) & (label == number)
            if both.any():
                result["captures"].append((str(name), LABELS[number], int(both.sum()), int((highest[both] >= threshold).sum())))
    return result


def snapshot(rows, scores, threshold, packets):
    """Flows that reached `packets`, and how many are flagged on that look alone, by label."""
    at = rows.packets == packets
    counts = []
    for number in range(len(LABELS)):
        both = at & (rows.label == number)
        counts.append((int(both.sum()), int((scores[both] >= threshold).sum())))
    return packets, counts
