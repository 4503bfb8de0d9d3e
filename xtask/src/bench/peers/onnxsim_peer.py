"""PyPI's onnxsim prunes: onnxsim_peer.py plain|calibrated MODEL OUT REMOVE CALIBRATION

Simplified first, without which it finds less. Plain: structured pruning by the L2 norm. Calibrated: its structured
Wanda score and its closed-form fine-tuning of what is left, on the calibration samples.
"""

import sys

import numpy
import onnx
import onnxsim

BATCH = 32


def batches(path, model):
    """The samples as the model's inputs; those that have a leading axis of their own are given one by one."""
    samples = dict(numpy.load(path))
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.input}
    count = len(next(iter(samples.values())))
    if any(samples[name].ndim > ranks[name] for name in samples):
        return [{name: numpy.asarray(array[at]) for name, array in samples.items()} for at in range(count)]
    cut = range(0, count, BATCH)
    return [{name: array[at : at + BATCH] for name, array in samples.items()} for at in cut]


def main():
    mode, source, out, remove, calibration = sys.argv[1:]
    model, _ = onnxsim.simplify(onnx.load(source))
    if mode == "plain":
        pruned = onnxsim.apply_structured_pruning(model, sparsity=float(remove))
    else:
        data = batches(calibration, model)
        pruned = onnxsim.apply_structured_wanda_pruning(model, calibration_data=data, sparsity=float(remove))
        pruned = onnxsim.apply_pruning_finetune(model, pruned, calibration_data=data)
    onnx.save(pruned, out)


if __name__ == "__main__":
    main()
