"""Judges pruned models by one measure: judge.py NAME ORIGINAL HELDOUT CANDIDATE...

Prints one JSON list with an object per candidate: params (elements of all constants), quality (0 to 1: how far its
answers are the original's, or true accuracy where the held-out samples have labels) and error (mean absolute
difference of the outputs), or why it cannot be run. The first candidate is the original itself.
"""

import json
import sys

import numpy
import onnx
import onnxruntime

SPEECH = 0.5
TEXT = 0.3
BATCH = 32


def elements(graph):
    """Elements of all constants of a graph and of the bodies in it."""
    total = sum(numpy.prod(tensor.dims, dtype=int) for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                total += numpy.prod(attribute.t.dims, dtype=int)
            if attribute.type == onnx.AttributeProto.GRAPH:
                total += elements(attribute.g)
    return int(total)


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def rows(path, inputs):
    """The first output for every sample, run in batches where the model's batch is free."""
    run = session(path)
    count = len(next(iter(inputs.values())))
    batch = 1 if run.get_inputs()[0].shape[0] == 1 else BATCH
    parts = []
    for at in range(0, count, batch):
        parts.append(run.run(None, {name: array[at : at + batch] for name, array in inputs.items()})[0])
    return numpy.concatenate(parts)


def speech(path, streams):
    """Probabilities of speech [streams, frames]; every stream runs through the candidate's own state."""
    run = session(path)
    state = numpy.zeros((2, len(streams), 128), numpy.float32)
    said = []
    for frame in streams.transpose(1, 0, 2):
        p, state = run.run(None, {"input": frame, "state": state, "sr": numpy.array(16000)})
        said.append(p[:, 0])
    return numpy.stack(said, 1)


def decoded(outputs):
    """Greedy CTC: symbols [N, T] without repeats and blanks, one list a sample."""
    best = outputs.argmax(2)
    kept = lambda row: [s for i, s in enumerate(row) if s != 0 and (i == 0 or s != row[i - 1])]
    return [kept(row.tolist()) for row in best]


def distance(a, b):
    """Levenshtein distance."""
    line = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, line[0] = line[0], i
        for j, y in enumerate(b, 1):
            above, line[j] = line[j], min(line[j] + 1, line[j - 1] + 1, above + (x != y))
    return line[-1]


def read_alike(outputs, reference):
    """1 less the character error rate against what the original reads."""
    pairs = list(zip(decoded(outputs), decoded(reference)))
    wrong = sum(min(distance(a, b), len(b)) for a, b in pairs)
    return 1 - wrong / max(1, sum(len(b) for _, b in pairs))


def same_area(outputs, reference):
    """F1 of the pixels that are called text."""
    a, b = outputs > TEXT, reference > TEXT
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


def quality(name, outputs, reference, samples):
    if name == "rec":
        return read_alike(outputs, reference)
    if name == "det":
        return same_area(outputs, reference)
    if name == "silero":
        return ((outputs > SPEECH) == (reference > SPEECH)).mean()
    wanted = samples["labels"] if "labels" in samples else reference.argmax(1)
    return (outputs.argmax(1) == wanted).mean()


def answers(name, path, samples):
    if name == "silero":
        return speech(path, samples["streams"])
    inputs = {key: samples[key] for key in samples if key not in ("labels", "texts")}
    return rows(path, inputs)


def judged(name, path, samples, reference):
    try:
        params = elements(onnx.load(path).graph)
        outputs = answers(name, path, samples)
        if not numpy.isfinite(outputs).all():
            raise ValueError("its outputs are not finite")
        return {
            "params": params,
            "quality": float(quality(name, outputs, reference, samples)),
            "error": float(numpy.abs(outputs - reference).mean()),
        }
    except Exception as error:  # every failure of a candidate is a result
        return {"why": " ".join(str(error).split())[:300]}


def main():
    name, original, heldout, *candidates = sys.argv[1:]
    samples = dict(numpy.load(heldout))
    reference = answers(name, original, samples)
    print(json.dumps([judged(name, path, samples, reference) for path in [original, *candidates]]))


if __name__ == "__main__":
    main()
