"""The Python side of python_test.cc.

  write FOLDER   random torchvision networks: NAME.safetensors, NAME.values.safetensors (x, layer2, logits); of the
                 segmentation network fcn_resnet50 also NAME.scripted.pt, as torch.jit.script makes it
  read FOLDER    what the C++ side wrote: weights load strictly into torchvision's modules, archives load, values agree
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
from torchvision.models.resnet import BasicBlock, ResNet, conv3x3
from torchvision.models.segmentation import fcn_resnet50, fcn_resnet101
from torchvision.models.segmentation.fcn import FCN, FCNHead

torch.set_num_threads(2)


class CifarResNet(nn.Module):
    """He et al. 2016, section 4.2, of torchvision's own blocks, named as RepDistiller and mdistiller do."""

    def __init__(self, depth, width, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for k in range(3):
            blocks = []
            for b in range((depth - 2) // 6):
                planes, stride = width << k, 2 if k and b == 0 else 1
                down = None
                if stride != 1 or channels != planes:
                    down = nn.Sequential(nn.Conv2d(channels, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
                blocks.append(BasicBlock(channels, planes, stride, down))
                channels = planes
            setattr(self, f"layer{k + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class DilatedBasicBlock(BasicBlock):
    """torchvision's block with a dilated first convolution, as mmsegmentation's."""

    def __init__(self, inplanes, planes, stride=1, downsample=None, groups=1, base_width=64, dilation=1,
                 norm_layer=None):
        super().__init__(inplanes, planes, stride, downsample, groups, base_width, 1, norm_layer)
        self.conv1 = conv3x3(inplanes, planes, stride, dilation=dilation)


class Fcn:
    """A segmentation network of torchvision: names without `backbone.`, logits instead of a dictionary."""

    def __init__(self, net):
        self.net = net
        self.layer2 = net.backbone.layer2
        self.names = {name.removeprefix("backbone."): name for name in net.state_dict()}

    def state_dict(self):
        state = self.net.state_dict()
        return {flat: state[name] for flat, name in self.names.items()}

    def load_state_dict(self, state, strict):
        self.net.load_state_dict({self.names.get(flat, flat): value for flat, value in state.items()}, strict=strict)

    def train(self):
        self.net.train()
        return self

    def eval(self):
        self.net.eval()
        return self

    def __call__(self, x):
        return self.net(x)["out"]


def make_fcn_resnet18():
    backbone = ResNet(DilatedBasicBlock, [2, 2, 2, 2], replace_stride_with_dilation=[False, True, True])
    return Fcn(FCN(IntermediateLayerGetter(backbone, {"layer4": "out"}), FCNHead(512, 7)))


def make_fcn(make):
    return Fcn(make(weights=None, weights_backbone=None, num_classes=7, aux_loss=None))


NETS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "resnet50": lambda: torchvision.models.resnet50(num_classes=7),
    "cifar_resnet20": lambda: CifarResNet(20, 16, 7),
    "fcn_resnet18": make_fcn_resnet18,
    "fcn_resnet50": lambda: make_fcn(fcn_resnet50),
    "fcn_resnet101": lambda: make_fcn(fcn_resnet101),
}
ONE_WAY = {"fcn_resnet50", "fcn_resnet101"}  # big, and made of what read() has in smaller ones


def run(net, x):
    kept = {}
    hook = net.layer2.register_forward_hook(lambda m, i, o: kept.update(layer2=o.detach().clone()))
    with torch.no_grad():
        kept["logits"] = net.eval()(x)
    hook.remove()
    return kept


def write(folder):
    torch.manual_seed(0)
    for name, make in NETS.items():
        # Every convolution with a stride rounds, and so does the way back to the image's size.
        height, width = (29, 37) if name.startswith("fcn") else (40, 48)
        net, x = make().train(), torch.randn(2, 3, height, width)
        with torch.no_grad():
            net(torch.randn(4 if name in ONE_WAY else 8, 3, height, width))  # statistics away from their start
        save_file(net.state_dict(), f"{folder}/{name}.safetensors", metadata={"format": "pt"})
        save_file({"x": x, **run(net, x)}, f"{folder}/{name}.values.safetensors")
        if name == "fcn_resnet50":
            torch.jit.script(net.net).save(f"{folder}/{name}.scripted.pt")


def read(folder):
    for name, make in NETS.items():
        if name in ONE_WAY:
            continue
        values = load_file(f"{folder}/{name}.values.safetensors")
        x = values.pop("x")
        net = make()
        net.load_state_dict(load_file(f"{folder}/{name}.safetensors"), strict=True)

        def same(what, got, key):
            assert torch.allclose(got, values[key], rtol=1e-4, atol=1e-4), (
                f"{name} {what}: largest difference {(got - values[key]).abs().max().item()}")

        got = run(net, x)
        same("torchvision layer2", got["layer2"], "layer2")
        same("torchvision logits", got["logits"], "logits")
        plain, taps = torch.jit.load(f"{folder}/{name}.pt"), torch.jit.load(f"{folder}/{name}.taps.pt")
        assert list(plain.state_dict()) == list(net.state_dict()), f"{name}: state_dict names or their order differ"
        same("archive", plain(x), "logits")
        assert not plain.training
        same("archive in train mode", plain.train()(x), "logits")
        outputs = taps(x)
        assert set(outputs) == {"output", "layer1.0.add", "layer2"}, set(outputs)
        same("archive tap", outputs["layer1.0.add"], "layer1.0.add")
        same("archive tap", outputs["layer2"], "layer2")
        same("archive output", outputs["output"], "logits")


if sys.argv[1] == "write":
    write(sys.argv[2])
elif sys.argv[1] == "read":
    read(sys.argv[2])
