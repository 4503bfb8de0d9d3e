"""Prints what ONNX's own shape inference knows of a model: NAME<tab>ELEMENT TYPE<tab>SIZES, one value a line.

usage: onnx_shapes.py MODEL...

Sizes are comma-separated; `?` where unknown or a name. A line `# MODEL` precedes the values of each model.
"""

import sys

import onnx


def main():
    for path in sys.argv[1:]:
        print("#", path)
        model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
        for value in list(model.graph.value_info) + list(model.graph.output):
            tensor = value.type.tensor_type
            if not tensor.elem_type or not tensor.HasField("shape"):
                continue
            sizes = [str(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else "?" for dim in tensor.shape.dim]
            print(f"{value.name}\t{tensor.elem_type}\t{','.join(sizes)}")


if __name__ == "__main__":
    main()
