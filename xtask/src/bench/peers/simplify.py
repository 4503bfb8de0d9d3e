"""Simplifies a model as onnxsim does, for the shapes of one sample: simplify.py MODEL OUT CALIBRATION"""

import sys

import numpy
import onnx
import onnxsim


def main():
    source, out, calibration = sys.argv[1:]
    model = onnx.load(source)
    samples = numpy.load(calibration)
    shapes = {}
    for value in model.graph.input:
        if value.name in samples:
            array = samples[value.name]
            whole = array.ndim > len(value.type.tensor_type.shape.dim)
            shapes[value.name] = list(array.shape[1:] if whole else (1, *array.shape[1:]))
    fixed = {name: shape for name, shape in shapes.items() if shape}
    onnx.save(onnxsim.simplify(model, overwrite_input_shapes=fixed)[0], out)


if __name__ == "__main__":
    main()
