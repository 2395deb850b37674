#!/usr/bin/env python3
"""Writes a network of your own as a TorchScript archive that Distillery trains or serves.

usage: export_model.py MODULE:CALLABLE --image HEIGHTxWIDTH --output NAME.pt [options]

Runs in your own Python, where your network can be imported; needs PyTorch 2.x and nothing of Distillery. The wheel of
scripts/wheel.sh installs it as distill-export.
  export_model.py torchvision.models:resnet18 --args '{"num_classes": 10}' --image 64x64 --output r18.pt
  export_model.py ./my_net.py:MyNet --weights my_net.safetensors --image 224x224 --taps 'stage*' --output mine.pt
  export_model.py timm:create_model --args '{"model_name": "vit_tiny_patch16_224"}' --tokens map \\
      --taps 'blocks.*' --stages blocks.5 blocks.11 --image 224x224 --output vit.pt

Two files appear: NAME.pt, whose forward returns the taps and the output by name, and NAME.pt.yaml beside it, which says
which images it takes, where its stages end and what its taps look like. Put both into a folder and start
`distill-student --models FOLDER` (a student of jobs with `student: {archive: NAME}`) or `distill-teacher --models
FOLDER` (the teacher NAME).

An archive for training (the default) follows train() and eval() module by module, as the network does, and can be
served too; --for serving writes the network as it is in eval mode. The network is read with torch.fx: every module that
it calls can be a tap, under its own name. What cannot be read this way is refused with the reason; such a network can
be scripted by hand: torch.jit.script of a module whose forward returns {"tap": map, ..., "output": logits}.

Before anything is written the archive is run beside the network: in eval mode with one, two and three pictures, and for
training in train mode with the same random numbers. Answers that differ are refused.
"""
import argparse
import copy
import fnmatch
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import operator
import os
import re
import sys
import tempfile
import warnings
from collections import defaultdict

import torch
from torch import fx
from torch.fx.passes.shape_prop import ShapeProp


class Refused(Exception):
    """The network cannot be exported; the text says why and what to do."""


def load_callable(path):
    """The object that MODULE:CALLABLE or FILE.py:CALLABLE names."""
    module_name, _, name = path.rpartition(":")
    if not module_name:
        raise Refused(f"'{path}' is not MODULE:CALLABLE, as in torchvision.models:resnet18 or ./my_net.py:MyNet")
    try:
        if module_name.endswith(".py"):
            # Under its own name and with its folder on the path, so that it may import its neighbours.
            sys.path.insert(0, os.path.dirname(os.path.abspath(module_name)))
            stem = os.path.splitext(os.path.basename(module_name))[0]
            spec = importlib.util.spec_from_file_location(stem, module_name)
            module = importlib.util.module_from_spec(spec)
            sys.modules[stem] = module
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(module_name)
    except (ImportError, OSError) as error:
        raise Refused(f"cannot import '{module_name}': {error}") from error
    for part in name.split("."):
        if not hasattr(module, part):
            raise Refused(f"'{module_name}' has no '{name}'")
        module = getattr(module, part)
    return module


def load_weights(model, path):
    """Puts a state dict from a safetensors file or a torch.save of one into the model."""
    if path.endswith(".safetensors"):
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise Refused(f"reading {path} takes the package safetensors: {sys.executable} -m pip install safetensors") from error
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
    for prefix in ("module.", "_orig_mod.", "model."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix):]: value for name, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise Refused(f"{path} does not fit the network: {error}") from error


def check_model(model):
    """Refuses what the workers cannot load: another device or dtype."""
    if not isinstance(model, torch.nn.Module):
        raise Refused(f"the callable gave a {type(model).__name__}, not a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise Refused("this is a TorchScript module already; name the Python class or function that makes the network")
    for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        if tensor.device.type != "cpu":
            raise Refused(f"'{name}' is on {tensor.device}; make the network on the CPU, or call .cpu() on it")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise Refused(f"'{name}' is {tensor.dtype}; call .float() on the network: workers choose the precision")


class Tracer(fx.Tracer):
    """fx.Tracer that remembers what each module returned and to which module each node belongs."""

    def __init__(self, leaves):
        super().__init__(autowrap_functions=(math.sqrt,))
        self.leaves = leaves
        self.returned = defaultdict(list)  # by module path
        self.stack = [""]

    def is_leaf_module(self, module, path):
        return path in self.leaves or super().is_leaf_module(module, path)

    def call_module(self, module, forward, args, kwargs):
        path = self.path_of_module(module)
        self.stack.append(path)
        try:
            value = super().call_module(module, forward, args, kwargs)
        finally:
            self.stack.pop()
        self.returned[path].append(value)
        return value

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self.stack[-1]
        return node


def training_argument(node):
    """(arguments, name) of a functional call's `training`, or None."""
    if node.op != "call_function" or not inspect.isroutine(node.target):
        return None
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    return bound if isinstance(bound.arguments.get("training"), bool) else None


def shape_of_trace(graph):
    """What each module does in a trace, without the values of `training`: to compare two traces."""
    does = defaultdict(list)
    index = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        bound = training_argument(node)
        if bound is not None:
            arguments = {key: value for key, value in bound.arguments.items() if key != "training"}
            given = fx.map_arg(arguments, lambda n: f"%{index[n]}")
        else:
            given = fx.map_arg((node.args, node.kwargs), lambda n: f"%{index[n]}")
        # Positions shift behind a difference, which would blame every later module: names of operators only.
        does[node.meta.get("owner", "")].append((node.op, str(node.target), re.sub(r"%\d+", "%", str(given))))
    return does


def trace(model, for_training):
    """(graph, returned): the network's graph, with `self.training` where functional calls read it."""
    leaves = set()
    while True:
        traces = {}
        for training in (True, False) if for_training else (False,):
            model.train(training)
            tracer = Tracer(leaves)
            try:
                graph = tracer.trace(model)
            except Exception as error:  # torch.fx raises what the network raises on symbolic values
                raise Refused(
                    f"torch.fx cannot read the network: {error} (control flow that depends on the pixels, or on "
                    "a shape, as in `if x.shape[0] > 1`); write a module whose forward returns {'tap': map, ..., "
                    "'output': logits} and save torch.jit.script(module)") from error
            traces[training] = (graph, tracer.returned)
        model.eval()
        if not for_training:
            return traces[False]
        one, other = shape_of_trace(traces[True][0]), shape_of_trace(traces[False][0])
        differ = sorted(path for path in set(one) | set(other) if one.get(path) != other.get(path))
        if not differ:
            break
        # Modules with `if self.training` (stochastic depth, say) stay whole: TorchScript keeps their condition. The
        # innermost first: those around them may differ because of them alone.
        inner = [path for path in differ if not any(o != path and o.startswith(path + ".") for o in differ) and path]
        if not inner:
            raise Refused(
                "the network's own forward does other things in training than in eval mode (as with auxiliary heads "
                "behind `if self.training`); take a variant without them, or --for serving")
        leaves.update(inner)
    graph, returned = traces[True]
    for node, evaluated in zip(list(graph.nodes), list(traces[False][0].nodes)):
        bound, other = training_argument(node), training_argument(evaluated)
        if bound is None or bound.arguments["training"] == other.arguments["training"]:
            continue
        owner = node.meta["owner"]
        with graph.inserting_before(node):
            flag = graph.get_attr(f"{owner}.training" if owner else "training")
        bound.arguments["training"] = flag
        node.args, node.kwargs = bound.args, bound.kwargs
    return graph, returned


# What overwrites its operand, and what gives the same value without: a tap must keep what it was.
IN_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
            operator.itruediv: operator.truediv}


def leave_operands_alone(model, graph):
    """Turns in-place operators into plain ones, and drops assertions about shapes."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]
        elif node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)
        elif node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__") and node.users:
            if hasattr(torch.Tensor, node.target[:-1]):
                node.target = node.target[:-1]
        elif node.op == "call_function" and node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}


def tensor_shape(node):
    """The shape measured for a node, or None when it is no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else None


class Exporter:
    """One network on its way into an archive."""

    def __init__(self, model, image, channels, mean, std, options):
        self.original, self.options = model, options
        self.image, self.channels, self.mean, self.std = image, channels, mean, std
        self.for_training = options.purpose == "training"
        generator = torch.Generator().manual_seed(20)
        self.pictures = torch.randn(3, channels, *image, generator=generator)

    def read(self):
        self.model = copy.deepcopy(self.original).eval()
        self.graph, returned = trace(self.model, self.for_training)
        leave_operands_alone(self.model, self.graph)
        self.module = fx.GraphModule(self.model, self.graph)
        self.module.eval()
        with torch.no_grad():
            ShapeProp(self.module).propagate(self.pictures[:2])
        alive = set(self.graph.nodes)
        self.order = {node: i for i, node in enumerate(self.graph.nodes)}
        self.values, self.twice = {}, set()
        for path, values in returned.items():
            node = getattr(values[-1], "node", None)
            if node is None or node not in alive or tensor_shape(node) is None:
                continue
            if len(values) > 1:
                self.twice.add(path)
            else:
                self.values[path] = node

    def as_map(self, path, node):
        """The node of a tap: a [N, T, D] value as [N, D, h, w] when that was asked for."""
        shape = tensor_shape(node)
        if len(shape) != 3 or self.options.tokens != "map":
            return node
        tokens = shape[1]
        prefix, grid = self.options.prefix_tokens, None
        if prefix is None:
            prefix = getattr(self.original, "num_prefix_tokens", None)
        for skipped in [prefix] if prefix is not None else range(min(tokens, 17)):
            patch = math.isqrt(max(self.image[0] * self.image[1] // max(tokens - skipped, 1), 1))
            h, w = self.image[0] // max(patch, 1), self.image[1] // max(patch, 1)
            if h * w == tokens - skipped:
                prefix, grid = skipped, (h, w)
                break
        if grid is None:
            raise Refused(f"tap '{path}' has {tokens} tokens, which make no grid of the image "
                          f"{self.image[0]}x{self.image[1]}; give --prefix-tokens, the number of class tokens and "
                          "registers before the patches")
        after = list(self.graph.nodes)[-2]
        with self.graph.inserting_after(after):
            patches = self.graph.call_function(operator.getitem, (node, (slice(None), slice(prefix, None))))
        with self.graph.inserting_after(patches):
            turned = self.graph.call_method("transpose", (patches, 1, 2))
        with self.graph.inserting_after(turned):
            plain = self.graph.call_method("contiguous", (turned,))
        with self.graph.inserting_after(plain):
            result = self.graph.call_method("unflatten", (plain, 2, grid))
        result.meta["map_shape"] = (shape[0], shape[2], *grid)
        return result

    def match(self, globs, among, what):
        """Those of `among` that the globs cover, in order of execution; each glob must match."""
        chosen = set()
        for pattern in globs:
            # '*' stays within one part of the path, '**' does not.
            expression = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^.]*")
            found = [path for path in among if re.fullmatch(expression, path)]
            if not found and pattern in self.twice:
                raise Refused(f"--{what} {pattern}: this module runs several times, so 'its output' has no one answer; "
                              "name the module around it")
            if not found:
                near = sorted(among, key=lambda path: -len(os.path.commonprefix([path, pattern.replace("*", "")])))
                raise Refused(f"--{what} {pattern} matches no module whose output is a tensor; there are: "
                              + ", ".join(near[:12]) + (", ..." if len(near) > 12 else ""))
            chosen.update(found)
        return sorted(chosen, key=lambda path: self.order[self.values[path]])

    def choose_taps(self):
        def usable(path):
            shape = tensor_shape(self.values[path])
            if len(shape) == 4:
                return shape[2] * shape[3] > 1
            return len(shape) == 3 and self.options.tokens == "map"

        if self.options.taps:
            names = self.match(self.options.taps, list(self.values), "taps")
        else:
            names = [path for path in self.values if path.count(".") <= 1 and path and usable(path)]
            names.sort(key=lambda path: self.order[self.values[path]])
        output_node = next(node for node in self.graph.nodes if node.op == "output")
        output = output_node.args[0]
        if isinstance(output, dict) and "out" in output:  # torchvision's segmentation networks
            output = output["out"]
        if isinstance(output, (tuple, list)) and len(output) == 1:
            output = output[0]
        if not isinstance(output, fx.Node):
            raise Refused("the network's forward returns no tensor (nor a dict with 'out'); wrap it in a module that "
                          "returns the logits")
        shape = tensor_shape(output)
        if shape is None or len(shape) not in (2, 4) or shape[0] != 2:
            raise Refused(f"for 2 pictures the network's output is {list(shape) if shape else 'no tensor'}; it must be "
                          "[N, K], or [N, K, H, W] of a network that answers for every pixel")
        nodes, self.shapes = {}, {}
        for path in names:
            node = self.as_map(path, self.values[path])
            shape = node.meta.get("map_shape") or tensor_shape(node)
            if shape[0] != 2 or len(shape) not in (2, 4):
                raise Refused(f"tap '{path}' is {list(shape)} for 2 pictures; a tap is [N, C, H, W] or [N, K]"
                              + ("; --tokens map makes a map of tokens [N, T, D]" if len(shape) == 3 else ""))
            nodes[path], self.shapes[path] = node, list(shape[1:])
        nodes["output"] = output
        self.output_shape = list(tensor_shape(output)[1:])
        with self.graph.inserting_before(output_node):
            self.graph.output(nodes)
        self.graph.erase_node(output_node)
        self.graph.lint()
        self.module.recompile()
        self.choose_stages()

    def choose_stages(self):
        """The last tap of each resolution, or those asked for."""
        maps = [path for path, shape in self.shapes.items() if len(shape) == 3 and shape[1] * shape[2] > 1]
        if self.options.stages:
            self.stages = self.match(self.options.stages, list(self.shapes), "stages")
            flat = [path for path in self.stages if path not in maps]
            if flat:
                raise Refused(f"--stages: '{flat[0]}' is {self.shapes[flat[0]]}, but a stage ends in a map [C, H, W]")
            return
        def area(path):
            return self.shapes[path][1] * self.shapes[path][2]

        # Behind the smallest maps a head begins: those of a network that answers for every pixel grow again, and where
        # they do not, what shares a module with a map of as many channels as classes is its head.
        heads = {path.split(".")[0] for path in maps
                 if len(self.output_shape) == 3 and self.shapes[path][0] == self.output_shape[0]}
        maps = [path for path in maps if path.split(".")[0] not in heads]
        if maps:
            smallest = min(map(area, maps))
            maps = maps[: max(i for i, path in enumerate(maps) if area(path) == smallest) + 1]
        self.stages = [path for i, path in enumerate(maps)
                       if i + 1 == len(maps) or self.shapes[maps[i + 1]][1:] != self.shapes[path][1:]]

    def script(self):
        self.module.train(self.for_training)
        try:
            # Scripting a GraphModule compiles the code that fx wrote, and nn modules as they are.
            self.archive = torch.jit.script(self.module)
        except Exception as error:  # what TorchScript cannot compile comes as many types
            text = str(error).strip().splitlines()
            raise Refused("TorchScript cannot compile the network: " + " ".join(line.strip() for line in text[:3])
                          + "; rewrite this part with tensor operations") from error
        if not self.for_training:
            self.archive = self.archive.eval()

    def compare(self):
        """The archive beside the network."""
        def logits(value):
            if isinstance(value, dict):
                value = value.get("out", value.get("output"))
            return value[0] if isinstance(value, (tuple, list)) else value

        def far(ours, theirs):
            return (ours - theirs).abs().max().item() / max(theirs.abs().max().item(), 1e-6)

        self.original.eval()
        self.archive.eval()
        with torch.no_grad():
            for n in (2, 1, 3):
                x = self.pictures[:n]
                try:
                    outputs = self.archive(x)
                except RuntimeError as error:
                    raise Refused(f"the archive fails on {n} picture(s): {str(error).strip().splitlines()[-1]}; the number "
                                  "of pictures became a constant: take it from the tensor, as in x.shape[0]") from error
                for name, shape in {**self.shapes, "output": self.output_shape}.items():
                    if list(outputs[name].shape) != [n, *shape]:
                        raise Refused(f"'{name}' is {list(outputs[name].shape)} for {n} picture(s), not {[n, *shape]}: "
                                      "the number of pictures became a constant; write x.flatten(1), not x.view(64, -1)")
                off = far(outputs["output"], logits(self.original(x)))
                if not off <= 1e-4:
                    raise Refused(f"in eval mode the archive's answers differ from the network's by {off:.2g} of the largest")
            if not self.for_training:
                return
            reference, trained = copy.deepcopy(self.original).train(), copy.deepcopy(self.archive)
            trained.train()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                theirs = logits(reference(self.pictures))
                torch.manual_seed(1)
                ours = trained(self.pictures)["output"]
            off = far(ours, theirs)
            if not off <= 1e-3:
                raise Refused(f"in train mode the archive's answers differ from the network's by {off:.2g} of the largest; "
                              "a part of it looks at self.training where torch.fx cannot see it")

    def save(self, path):
        names = set(dict(self.archive.named_parameters()))
        unused = [name for name in dict(self.original.named_parameters()) if name not in names]
        if unused and self.for_training:
            print(f"note: {len(unused)} parameters never run and are left out (first: {unused[0]})", file=sys.stderr)
        folder = os.path.dirname(os.path.abspath(path))
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".export.", suffix=".tmp")
        os.close(handle)
        try:
            self.archive.save(temporary)
            digest = hashlib.sha256(open(temporary, "rb").read()).hexdigest()
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        lines = [f"# The TorchScript archive {os.path.basename(path)} beside this file, for {self.options.purpose}: "
                 f"{self.options.model} {self.options.args}".rstrip(),
                 f"# {sum(p.numel() for p in self.archive.parameters())} parameters; output {self.output_shape}",
                 f"in_channels: {self.channels}",
                 f"image: {self.image[0]}x{self.image[1]}",
                 f"mean: {list(self.mean)}",
                 f"std: {list(self.std)}",
                 f"digest: {digest}",
                 f"stages: [{', '.join(json.dumps(stage) for stage in self.stages)}]",
                 "taps:" + (" {}" if not self.shapes else "")]
        for name, shape in self.shapes.items():
            stride = f"  # stride {self.image[0] / shape[1]:g}" if len(shape) == 3 else ""
            lines.append(f"  {json.dumps(name)}: {shape}{stride}")
        with open(path + ".yaml", "w", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")
        return digest


def parse_arguments(argv):
    parser = argparse.ArgumentParser(usage="%(prog)s MODULE:CALLABLE --image HEIGHTxWIDTH --output NAME.pt [options]",
                                     description="Writes a network of your own as a TorchScript archive that Distillery "
                                                 "trains or serves.")
    parser.add_argument("model", metavar="MODULE:CALLABLE", help="what makes the network; a module or a file .py")
    parser.add_argument("--args", default="", metavar="JSON", help="its keyword arguments: '{\"num_classes\": 10}'")
    parser.add_argument("--weights", metavar="FILE", help="state dict: .safetensors, or torch.save of one")
    parser.add_argument("--image", required=True, metavar="HxW", help="height and width of the pictures in pixels")
    parser.add_argument("--channels", type=int, default=3, help="of the pictures; default 3")
    parser.add_argument("--mean", type=float, nargs="+", metavar="X", help="per channel, of pixel/255; default 0")
    parser.add_argument("--std", type=float, nargs="+", metavar="X", help="per channel, of pixel/255; default 1")
    parser.add_argument("--taps", nargs="+", metavar="GLOB",
                        help="module paths ('layer*', 'blocks.*', '**.conv2'); default: maps at most two parts deep")
    parser.add_argument("--stages", nargs="+", metavar="GLOB", help="taps that end a stage; default: the last of each size")
    parser.add_argument("--tokens", choices=["map"], help="make maps [N, D, h, w] of tokens [N, T, D], patches only")
    parser.add_argument("--prefix-tokens", type=int, metavar="N", help="class tokens and registers before the patches")
    parser.add_argument("--for", dest="purpose", choices=["training", "serving"], default="training")
    parser.add_argument("--output", required=True, metavar="NAME.pt", help="the archive; NAME.pt.yaml is written too")
    return parser.parse_args(argv)


def export(options):
    sides = re.fullmatch(r"(\d+)x(\d+)", options.image)
    if not sides:
        raise Refused(f"--image '{options.image}' is not HEIGHTxWIDTH, as in 224x224")
    if not options.output.endswith(".pt"):
        raise Refused(f"--output '{options.output}' must end in .pt")
    image = (int(sides[1]), int(sides[2]))
    mean = options.mean or [0.0] * options.channels
    std = options.std or [1.0] * options.channels
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != options.channels:
            raise Refused(f"--{name} has {len(values)} values for {options.channels} channels")
    if min(std) <= 0:
        raise Refused("--std: all values must be above 0")
    try:
        arguments = json.loads(options.args) if options.args else {}
    except json.JSONDecodeError as error:
        raise Refused(f"--args is no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise Refused("--args must be a JSON object of keyword arguments")
    torch.manual_seed(0)
    model = load_callable(options.model)(**arguments)
    check_model(model)
    if options.weights:
        load_weights(model, options.weights)
    exporter = Exporter(model, image, options.channels, mean, std, options)
    exporter.read()
    exporter.choose_taps()
    exporter.script()
    exporter.compare()
    digest = exporter.save(options.output)
    print(f"{options.output}: for {options.purpose}, SHA-256 {digest[:12]}")
    width = max([len(name) for name in exporter.shapes] + [6])
    for name, shape in exporter.shapes.items():
        stride = f"  stride {image[0] / shape[1]:g}" if len(shape) == 3 else ""
        print(f"  {name:{width}}  {'x'.join(map(str, shape)):14}{stride}{'  end of a stage' if name in exporter.stages else ''}")
    print(f"  {'output':{width}}  {'x'.join(map(str, exporter.output_shape))}")


def main(argv=None):
    for noise in (".*torch.jit.*deprecated.*", "The TorchScript type system doesn't support instance-level annotations.*"):
        warnings.filterwarnings("ignore", message=noise)
    try:
        export(parse_arguments(argv))
    except Refused as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
