"""PyPI's torch-pruning prunes: torch_peer.py MODEL SIMPLIFIED OUT REMOVE CALIBRATION

The model is converted by onnx2torch; where that or the pruning fails, the same is tried with the model as onnxsim
simplified it. In its favour, torch-pruning is shown what a PyTorch model would have: shapes are those of one sample,
constants are initializers, a flattening is one, a product with a constant matrix is a linear layer, and constants in
arithmetic are parameters. The layers nearest to the outputs are left alone, as its guide asks, and those whose width
a reshape has taken apart.
"""

import os
import sys
import types

import numpy
import onnx
import torch
from onnx import numpy_helper
from torch import fx, nn

# onnx2torch needs torchvision for two operators that none of the models has.
for name in ("torchvision", "torchvision.ops"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchvision.ops"].roi_align = None

import onnx2torch  # noqa: E402
import torch_pruning  # noqa: E402

WIDE = (nn.Linear, nn.modules.conv._ConvNd)


def with_initializers(model):
    """Constants, and other names of constants, as initializers, which onnx2torch asks for."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = shapes_of(model)
    kept = []
    for node in model.graph.node:
        value = [a.t for a in node.attribute if a.name == "value"]
        if node.op_type == "Identity" and node.input[0] in held:
            value = [held[node.input[0]]]
        if node.op_type in ("Constant", "Identity") and value:
            held[node.output[0]] = numpy_helper.from_array(numpy_helper.to_array(value[0]), node.output[0])
        else:
            kept.append(flattening(node, held, shapes))
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(held.values())
    return model


def shapes_of(model):
    """Shapes of all values that shape inference finds."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*inferred.input, *inferred.value_info]
    }


def flattening(node, held, shapes):
    """A reshape that keeps one row a sample as a flattening, which says no width; others without the zeros that stand
    for a size of the input, on which PyTorch's exporter fails."""
    target = held.get(node.input[1]) if node.op_type == "Reshape" else None
    if target is None:
        return node
    shape = numpy_helper.to_array(target).tolist()
    known = shapes.get(node.input[0], [])
    if len(shape) == 2 and shape[0] == -1 and shape[1] == int(numpy.prod(known[1:] or [0])):
        shape = [1, -1]
    elif 0 in shape and all(at < len(known) for at, size in enumerate(shape) if size == 0):
        shape = [size or known[at] for at, size in enumerate(shape)]
    name = node.output[0] + "_shape"
    held[name] = numpy_helper.from_array(numpy.array(shape), name)
    node.input[1] = name
    return node


def with_shapes(model, inputs):
    """The model with the shapes of one sample, which onnx2torch needs to be told."""
    held = {tensor.name for tensor in model.graph.initializer}
    free = [value for value in model.graph.input if value.name not in held]
    for value, tensor in zip(free, inputs):
        del value.type.tensor_type.shape.dim[:]
        for size in tensor.shape:
            value.type.tensor_type.shape.dim.add().dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return model


def constant(net, node):
    """The tensor that an fx node reads from the model, or none."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return net.get_submodule("initializers").get_buffer(node.target.split(".")[-1])


def with_linears(net):
    """Products with a constant matrix as linear layers."""
    for node in list(net.graph.nodes):
        if node.op != "call_module" or type(net.get_submodule(node.target)).__name__ != "OnnxMatMul":
            continue
        weight = constant(net, node.args[1])
        if weight is None or weight.ndim != 2:
            continue
        layer = nn.Linear(*weight.shape, bias=False)
        layer.weight.data = weight.T.contiguous()
        net.add_submodule(node.target, layer)
        node.args = (node.args[0],)
    net.graph.eliminate_dead_code()
    net.recompile()
    return net


def with_parameters(net):
    """Floating constants of more than one element as parameters, which torch-pruning follows."""
    held = dict(net.named_modules()).get("initializers", nn.Module())
    for name, tensor in list(held.named_buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1:
            delattr(held, name)
            held.register_parameter(name, nn.Parameter(tensor))
    return net


def left_alone(net):
    """The layers with weights nearest before an output or a reshape that is no flattening."""
    found, seen = [], set()
    todo = [node for node in net.graph.nodes if node.op == "output" or is_reshape(net, node)]
    while todo:
        for node in todo.pop().all_input_nodes:
            if node in seen:
                continue
            seen.add(node)
            layer = net.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(layer, WIDE):
                found.append(layer)
            else:
                todo.append(node)
    return found


def is_reshape(net, node):
    """Whether an fx node takes widths apart."""
    if node.op != "call_module" or type(net.get_submodule(node.target)).__name__ != "OnnxReshape":
        return False
    shape = constant(net, node.args[1]) if len(node.args) > 1 else None
    return shape is None or shape.tolist() != [1, -1]


def example(path, model):
    """The first sample, in the order of the model's inputs."""
    samples = numpy.load(path)
    names = [value.name for value in model.graph.input]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.input}
    one = lambda name: samples[name][0] if samples[name].ndim > ranks[name] else samples[name][:1]
    return names, tuple(torch.from_numpy(numpy.ascontiguousarray(one(name))) for name in names)


def export(net, inputs, names, source, out):
    """Writes the net for the shapes of one sample; the judge runs such a model sample by sample."""
    torch.onnx.export(
        net,
        inputs,
        out,
        input_names=names,
        output_names=[o.name for o in source.graph.output],
        opset_version=13,
    )


def attempt(path, out, remove, calibration):
    source = onnx.load(path)
    names, inputs = example(calibration, source)
    shaped = with_initializers(with_shapes(onnx.load(path), inputs))
    net = with_linears(onnx2torch.convert(shaped))
    alone = left_alone(net)
    net = with_parameters(net).eval()
    args = inputs if len(inputs) > 1 else inputs[0]
    pruner = torch_pruning.pruner.BasePruner(
        net,
        args,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=float(remove),
        ignored_layers=alone,
    )
    pruner.step()
    net(*inputs)
    export(net, args, names, source, out)


def main():
    path, simplified, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    try:
        attempt(path, *rest)
    except Exception as first:
        try:
            attempt(simplified, *rest)
        except Exception as second:
            print(f"{last_line(first)}; simplified: {last_line(second)}", flush=True)
            # PyTorch's exporter can leave a lock held, on which an ordinary exit would wait for ever.
            os._exit(1)


def last_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:140]}"


if __name__ == "__main__":
    main()
