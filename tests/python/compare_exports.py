"""Compares models with their re-exports: what the files say, and what ONNX Runtime computes from them.

usage: compare_exports.py LIST [--outputs-only]

Each line of LIST is ORIGINAL<tab>EXPORTED. Inputs come from `test_data_set_0` beside the original where that
exists; otherwise they are random, from a fixed seed, in the declared types and shapes. A model that ONNX Runtime
refuses in its original form is compared by content only, and counted. Exits with 1 on any difference.
"""

import collections
import glob
import os
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

SEED = 7
# Sizes tried for dimensions that a model leaves open (the first open one, the batch, is 1).
OPEN_SIZES = [512, 64, 48, 16, 1]
TYPES = {
    "float": np.float32, "double": np.float64, "float16": np.float16, "int64": np.int64, "int32": np.int32,
    "int16": np.int16, "int8": np.int8, "uint64": np.uint64, "uint32": np.uint32, "uint16": np.uint16,
    "uint8": np.uint8, "bool": np.bool_,
}


# --- what the files say ------------------------------------------------------------------------------------

# Storage of a tensor's elements: replaced by the elements.
STORAGE = {
    "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data", "raw_data",
    "data_location", "external_data",
}
UNORDERED = {"initializer", "value_info"}


def meaning(message):
    """A message as plain data, with defaults dropped and tensors by their elements."""
    if not hasattr(message, "ListFields"):
        return message
    name = message.DESCRIPTOR.name
    found = {}
    for field, value in message.ListFields():
        if name == "TensorProto" and field.name in STORAGE:
            continue
        if name == "AttributeProto" and field.name == "type":
            continue
        repeated = not hasattr(value, "ListFields") and hasattr(value, "__len__") and not isinstance(value, (str, bytes))
        if repeated:
            parts = [meaning(part) for part in value]
            if field.name in UNORDERED:
                parts.sort(key=lambda part: str(part.get("name", "")))
            if parts:
                found[field.name] = parts
        else:
            value = meaning(value)
            if value not in ("", b"", {}) or field.name in ("shape", "value"):
                found[field.name] = value if value == value else "NaN"
    if name == "TensorProto":
        found["elements"] = elements(message)
    return found


def elements(tensor):
    if tensor.data_type == onnx.TensorProto.STRING:
        return list(tensor.string_data)
    if tensor.data_type == onnx.TensorProto.UNDEFINED:
        return tensor.raw_data
    array = numpy_helper.to_array(tensor)
    return (str(array.dtype), array.shape, array.tobytes())


def first_difference(a, b, path="model"):
    if type(a) is not type(b):
        return f"{path}: {a!r:.80} and {b!r:.80}"
    if isinstance(a, dict):
        for key in sorted(set(a) | set(b)):
            if key not in a or key not in b:
                return f"{path}.{key}: only in the {'export' if key not in a else 'original'}"
            found = first_difference(a[key], b[key], f"{path}.{key}")
            if found:
                return found
        return None
    if isinstance(a, list):
        if len(a) != len(b):
            return f"{path}: {len(a)} and {len(b)} entries"
        for index, (left, right) in enumerate(zip(a, b)):
            found = first_difference(left, right, f"{path}[{index}]")
            if found:
                return found
        return None
    return None if a == b else f"{path}: {a!r:.80} and {b!r:.80}"


def sorted_nodes(model):
    """Files whose nodes are out of order are exported in order; compare nodes by what they write."""
    for graph in (model["graph"],):
        graph.get("node", []).sort(key=lambda node: (node.get("output", []), node.get("name", "")))


# --- what ONNX Runtime computes ----------------------------------------------------------------------------


def session(path):
    ort.set_seed(SEED)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def stored_inputs(model, path):
    files = glob.glob(os.path.join(os.path.dirname(path), "test_data_set_0", "input_*.pb"))
    files.sort(key=lambda name: int(name.rsplit("_", 1)[1].split(".")[0]))
    if not files:
        return None
    initializers = {tensor.name for tensor in model.graph.initializer}
    names = [value for value in model.graph.input if value.name not in initializers]
    return {value.name: stored(value.type, file) for value, file in zip(names, files)}


def stored(kind, path):
    with open(path, "rb") as file:
        data = file.read()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def random_inputs(inputs, open_size):
    generator = np.random.default_rng(SEED)
    feeds = {}
    for value in inputs:
        kind = TYPES[value.type.removeprefix("tensor(").removesuffix(")")]
        shape, batch = [], True
        for size in value.shape:
            if isinstance(size, int):
                shape.append(size)
            else:
                shape.append(1 if batch else open_size)
                batch = False
        if value.name == "sr":  # a sampling rate: only some are allowed
            feeds[value.name] = np.full(shape, 16000, kind)
        elif kind == np.bool_:
            feeds[value.name] = generator.integers(0, 2, shape).astype(bool)
        elif np.issubdtype(kind, np.integer):
            feeds[value.name] = np.asarray(generator.integers(0, 8, shape)).astype(kind)
        else:
            feeds[value.name] = np.asarray(generator.standard_normal(shape)).astype(kind)
    return feeds


def run(path, feeds):
    return session(path).run(None, feeds)


def original_outputs(model, path):
    """Inputs and outputs of the original, or the reason why ONNX Runtime refuses it."""
    try:
        opened = session(path)
        feeds = stored_inputs(model, path)
        choices = [feeds] if feeds is not None else (random_inputs(opened.get_inputs(), s) for s in OPEN_SIZES)
    except Exception as error:  # whatever the runtime says, it is a refusal of the original
        return None, None, str(error)
    reason = ""
    for feeds in choices:
        try:
            return feeds, run(path, feeds), ""
        except Exception as error:
            reason = str(error)
    return None, None, reason


def same_value(a, b):
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_value(a[k], b[k]) for k in a)
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")


def content_difference(before, after):
    left, right = meaning(before), meaning(after)
    sorted_nodes(left)
    sorted_nodes(right)
    return first_difference(left, right)


def compare(original, exported, outputs_only):
    """The outcome (same, random, refused, content or differs) and the difference, if there is one."""
    before = onnx.load(original)
    difference = None if outputs_only else content_difference(before, onnx.load(exported))
    if difference:
        return "content", difference
    feeds, wanted, reason = original_outputs(before, original)
    if feeds is None:
        return "refused", reason.replace("\n", " ")[:160]
    found = run(exported, feeds)
    if same_value(wanted, found):
        return "same", ""
    if not same_value(wanted, run(original, feeds)):
        alike = [np.shape(a) == np.shape(b) for a, b in zip(wanted, found)]
        return ("random", "") if all(alike) else ("differs", "shapes of random outputs")
    return "differs", "outputs differ"


def main():
    ort.set_default_logger_severity(4)
    outputs_only = "--outputs-only" in sys.argv[2:]
    with open(sys.argv[1], encoding="utf-8") as file:
        pairs = [line.rstrip("\n").split("\t") for line in file]
    counts, failures = collections.Counter(), []
    for original, exported in pairs:
        try:
            outcome, detail = compare(original, exported, outputs_only)
        except Exception as error:
            outcome, detail = "differs", f"the export fails: {error}"
        counts[outcome] += 1
        if outcome == "refused":
            print(f"ONNX Runtime refuses the original {original}: {detail}")
        elif outcome in ("differs", "content"):
            failures.append(f"{original}: {detail}")
    print(f"{len(pairs)} models: {counts['same']} same outputs, {counts['random']} random by nature, "
          f"{counts['refused']} refused by ONNX Runtime as they are (same content), {len(failures)} differ")
    for failure in failures:
        print("DIFFERS", failure)
    sys.exit(1 if failures or not pairs else 0)


if __name__ == "__main__":
    main()
