"""The Python side of python_test.cc.

  write FOLDER NAME...   random networks: NAME.safetensors, NAME.values.safetensors (x, the tap of NETS, logits); of
                         the segmentation network fcn_resnet50 also NAME.scripted.pt, as torch.jit.script makes it
  read FOLDER NAME...    what the C++ side wrote: weights load strictly into these networks, archives load, values
                         agree
"""
import sys

try:
    import torch
    import torchvision
    from safetensors.torch import load_file, save_file
except ImportError:
    sys.exit(77)  # python_test.cc skips
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50, fcn_resnet101
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.models.vgg import VGG, make_layers

import reference_nets
from reference_nets import DilatedBlock

torch.set_num_threads(2)


class Fcn:
    """A segmentation network of torchvision: names without `backbone.`, logits instead of a dictionary."""

    def __init__(self, net):
        self.net = net
        self.names = {name.removeprefix("backbone."): name for name in net.state_dict()}

    def state_dict(self):
        state = self.net.state_dict()
        return {flat: state[name] for flat, name in self.names.items()}

    def load_state_dict(self, state, strict):
        self.net.load_state_dict({self.names.get(flat, flat): value for flat, value in state.items()}, strict=strict)

    def get_submodule(self, path):
        return self.net.backbone.get_submodule(path)

    def train(self):
        self.net.train()
        return self

    def eval(self):
        self.net.eval()
        return self

    def __call__(self, x):
        return self.net(x)["out"]


def make_fcn_resnet18():
    backbone = ResNet(DilatedBlock, [2, 2, 2, 2], replace_stride_with_dilation=[False, True, True])
    return Fcn(FCN(IntermediateLayerGetter(backbone, {"layer4": "out"}), FCNHead(512, 7)))


def make_deeplab_resnet18():
    backbone = ResNet(DilatedBlock, [2, 2, 2, 2], replace_stride_with_dilation=[False, False, True])
    return Fcn(FCN(IntermediateLayerGetter(backbone, {"layer4": "out"}), DeepLabHead(512, 7, (6, 12, 18))))


def make_fcn(make):
    return Fcn(make(weights=None, weights_backbone=None, num_classes=7, aux_loss=None))


def make_vgg(width):
    """torchvision's vgg11_bn with all channels scaled: whole, it has 133 million parameters."""
    times = (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M")
    net = VGG(make_layers([t if t == "M" else t * width for t in times], batch_norm=True), num_classes=7)
    for index, (a, b) in {0: (8 * width * 49, 64 * width), 3: (64 * width, 64 * width), 6: (64 * width, 7)}.items():
        net.classifier[index] = nn.Linear(a, b)
    return net


# What is made, a tap that is a module of it, and the image's size. Odd sizes: every convolution with a stride rounds,
# and so does the way back to the image's size.
NETS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=7), "layer2", (40, 48)),
    "resnet50": (lambda: torchvision.models.resnet50(num_classes=7), "layer2", (40, 48)),
    "cifar_resnet20": (lambda: reference_nets.CifarResNet(20, 16, 7), "layer2", (40, 48)),
    "cifar_resnet8x4": (lambda: reference_nets.CifarResNet(8, 32, 7, 2), "layer2", (32, 32)),
    "cifar_wrn_16_2": (lambda: reference_nets.WideResNet(16, 2, 16, 7), "block2", (32, 32)),
    "cifar_wrn_40_1": (lambda: reference_nets.WideResNet(40, 1, 16, 7), "block2.layer.3", (33, 32)),
    "cifar_vgg8_bn": (lambda: reference_nets.CifarVgg([1] * 5, 64, 7), "block2", (32, 32)),
    "cifar_vgg13_bn": (lambda: reference_nets.CifarVgg([2] * 5, 16, 7), "block3.4", (64, 64)),
    "cifar_mobilenet_v2": (lambda: reference_nets.CifarMobileNetV2(0.5, 7), "blocks.2", (32, 32)),
    "cifar_shufflenet_v2": (lambda: reference_nets.CifarShuffleNetV2(7), "layer2", (32, 32)),
    "vgg11_bn": (lambda: make_vgg(8), "features.14", (72, 64)),
    "mobilenet_v1": (lambda: reference_nets.MobileNetV1(7), "model.5", (64, 45)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=7), "features.6", (64, 45)),
    "mobilenet_v2_half": (lambda: torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.5), "features.6",
                          (64, 45)),
    "shufflenet_v2_x0_5": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=7), "stage3", (64, 45)),
    "shufflenet_v2_x1_5": (lambda: torchvision.models.shufflenet_v2_x1_5(num_classes=7), "stage3", (64, 45)),
    "fcn_resnet18": (make_fcn_resnet18, "layer2", (29, 37)),
    "fcn_resnet50": (lambda: make_fcn(fcn_resnet50), "layer2", (29, 37)),
    "fcn_resnet101": (lambda: make_fcn(fcn_resnet101), "layer2", (29, 37)),
    "deeplabv3_resnet50": (lambda: make_fcn(deeplabv3_resnet50), "layer2", (29, 37)),
    "deeplabv3_resnet18_os16": (make_deeplab_resnet18, "layer3", (45, 61)),
    "deeplabv3_mobilenet_v2": (lambda: reference_nets.DeepLabMobileNet(7, 8), "features.13", (45, 61)),
    "deeplabv3plus_resnet18": (lambda: reference_nets.PlusResNet18(7, 8), "layer4", (45, 61)),
    "deeplabv3plus_resnet18_os16": (lambda: reference_nets.PlusResNet18(7, 16), "classifier.aspp", (45, 61)),
    "deeplabv3plus_mobilenet_v2_os16": (lambda: reference_nets.PlusMobileNet(7, 16), "high_level_features.13",
                                        (45, 61)),
    "pspnet_resnet18": (lambda: reference_nets.PspNet(BasicBlock, [2, 2, 2, 2], 7), "layer3", (57, 49)),
    "pspnet_resnet50": (lambda: reference_nets.PspNet(Bottleneck, [3, 4, 6, 3], 7), "ppm", (57, 49)),
}

def run(net, tap, x):
    kept = {}
    # A clone: the module behind may overwrite it.
    hook = net.get_submodule(tap).register_forward_hook(lambda m, i, o: kept.update({tap: o.detach().clone()}))
    with torch.no_grad():
        kept["logits"] = net.eval()(x)
    hook.remove()
    return kept


def write(folder, names):
    torch.manual_seed(0)
    for name in names:
        make, tap, (height, width) = NETS[name]
        net, x = make().train(), torch.randn(2, 3, height, width)
        with torch.no_grad():
            net(torch.randn(8, 3, height, width))  # statistics away from their start
        save_file(net.state_dict(), f"{folder}/{name}.safetensors", metadata={"format": "pt"})
        save_file({"x": x, **run(net, tap, x)}, f"{folder}/{name}.values.safetensors")
        if name == "fcn_resnet50":
            torch.jit.script(net.net).save(f"{folder}/{name}.scripted.pt")


def read(folder, names):
    for name in names:
        make, tap, _ = NETS[name]
        values = load_file(f"{folder}/{name}.values.safetensors")
        x = values.pop("x")
        net = make()
        net.load_state_dict(load_file(f"{folder}/{name}.safetensors"), strict=True)

        def same(what, got, key):
            worst, largest = (got - values[key]).abs().max().item(), values[key].abs().max().item()
            assert got.shape == values[key].shape and worst <= 1e-5 * largest, (
                f"{name} {what}: largest difference {worst}, largest value {largest}")

        got = run(net, tap, x)
        same("reference " + tap, got[tap], tap)
        same("reference logits", got["logits"], "logits")
        plain, taps = torch.jit.load(f"{folder}/{name}.pt"), torch.jit.load(f"{folder}/{name}.taps.pt")
        assert list(plain.state_dict()) == list(net.state_dict()), f"{name}: state_dict names or their order differ"
        same("archive", plain(x), "logits")
        assert not plain.training
        same("archive in train mode", plain.train()(x), "logits")
        outputs = taps(x)
        assert set(outputs) == {"output", *values} - {"logits"}, set(outputs)
        for key in set(values) - {"logits"}:
            same("archive tap " + key, outputs[key], key)
        same("archive output", outputs["output"], "logits")


{"write": write, "read": read}[sys.argv[1]](sys.argv[2], sys.argv[3:])
