"""Networks of the papers that torchvision lacks, written anew for the tests after RepDistiller (CIFAR), mdistiller
(MobileNetV1), semseg (PSPNet) and DeepLabV3Plus-Pytorch: the same names in the same order, the same values."""
import torch
from torch import nn
from torch.nn.functional import interpolate, relu
from torchvision.models import mobilenet_v2
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead


def triple(*conv, act=nn.ReLU, **options):
    made = nn.Conv2d(*conv, bias=False, **options)
    return [made, nn.BatchNorm2d(made.out_channels), act(inplace=True)]


class CifarResNet(nn.Module):
    """He et al. 2016, section 4.2, of torchvision's own blocks. times: first stage's channels over the stem's."""

    def __init__(self, depth, width, classes, times=1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for k in range(3):
            blocks = []
            for b in range((depth - 2) // 6):
                planes, stride = times * width << k, 2 if k and b == 0 else 1
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


class WideBlock(nn.Module):
    def __init__(self, channels, planes, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        if channels != planes:
            self.convShortcut = nn.Conv2d(channels, planes, 1, stride, bias=False)

    def forward(self, x):
        first = relu(self.bn1(x))
        body = self.conv2(relu(self.bn2(self.conv1(first))))
        return body + (self.convShortcut(first) if hasattr(self, "convShortcut") else x)


class WideGroup(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, widen, width, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        channels = width
        for k in range(3):
            blocks = []
            for b in range((depth - 4) // 6):
                blocks.append(WideBlock(channels, width * widen << k, 2 if k and b == 0 else 1))
                channels = width * widen << k
            setattr(self, f"block{k + 1}", WideGroup(blocks))
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(relu(self.bn1(x)).mean((2, 3)))


class CifarVgg(nn.Module):
    def __init__(self, convolutions, width, classes):
        super().__init__()
        channels = 3
        for k, count in enumerate(convolutions):
            layers = []
            for _ in range(count):
                planes = width * min(1 << k, 8)
                layers += [nn.Conv2d(channels, planes, 3, 1, 1), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
                channels = planes
            setattr(self, f"block{k}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        pools = 4 if x.shape[2] == 64 else 3
        for k in range(5):
            x = relu(getattr(self, f"block{k}")(x))
            if k < pools:
                x = nn.functional.max_pool2d(x, 2)
        return self.classifier(x.mean((2, 3)))


class Inverted(nn.Module):
    def __init__(self, channels, planes, stride, expansion):
        super().__init__()
        inner = channels * expansion
        self.keeps = stride == 1 and channels == planes
        self.conv = nn.Sequential(*triple(channels, inner, 1), *triple(inner, inner, 3, stride, 1, groups=inner),
                                  nn.Conv2d(inner, planes, 1, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        return x + self.conv(x) if self.keeps else self.conv(x)


class CifarMobileNetV2(nn.Module):
    GROUPS = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]

    def __init__(self, times, classes):
        super().__init__()
        channels = int(32 * times)
        self.conv1 = nn.Sequential(*triple(3, channels, 3, 2, 1))
        self.blocks = nn.ModuleList()
        for expansion, planes, count, stride in self.GROUPS:
            layers = []
            for b in range(count):
                layers.append(Inverted(channels, int(planes * times), stride if b == 0 else 1, expansion))
                channels = int(planes * times)
            self.blocks.append(nn.Sequential(*layers))
        self.conv2 = nn.Sequential(*triple(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def forward(self, x):
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.conv2(x).mean((2, 3)))


class ShuffleUnit(nn.Module):
    def __init__(self, channels, planes, stride):
        super().__init__()
        half = planes // 2
        start = channels if stride > 1 else half
        plan = [(start, half, 1, 1, 1), (half, half, 3, stride, half), (half, half, 1, 1, 1)]
        if stride > 1:
            plan = [(channels, channels, 3, stride, channels), (channels, half, 1, 1, 1)] + plan
        for i, (a, b, kernel, step, groups) in enumerate(plan, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, step, kernel // 2, groups=groups, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.down = stride > 1

    def run(self, i, x):
        return getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))

    def forward(self, x):
        if self.down:
            left, right, first = relu(self.run(2, self.run(1, x))), x, 3
        else:
            (left, right), first = x.chunk(2, 1), 1
        right = relu(self.run(first + 2, self.run(first + 1, relu(self.run(first, right)))))
        both = torch.cat([left, right], 1)
        n, c, h, w = both.shape
        return both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class CifarShuffleNetV2(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        channels = 24
        for k, (planes, count) in enumerate([(116, 4), (232, 8), (464, 4)], 1):
            units = [ShuffleUnit(channels if b == 0 else planes, planes, 2 if b == 0 else 1) for b in range(count)]
            setattr(self, f"layer{k}", nn.Sequential(*units))
            channels = planes
        self.conv2 = nn.Conv2d(channels, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return self.linear(relu(self.bn2(self.conv2(x))).mean((2, 3)))


class MobileNetV1(nn.Module):
    PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]

    def __init__(self, classes, times=1.0):
        super().__init__()
        channels = int(32 * times)
        layers = [nn.Sequential(*triple(3, channels, 3, 2, 1))]
        for planes, stride in self.PAIRS:
            planes = int(planes * times)
            layers.append(nn.Sequential(*triple(channels, channels, 3, stride, 1, groups=channels),
                                        *triple(channels, planes, 1)))
            channels = planes
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        return self.fc(self.model(x).flatten(1))


class DilatedBlock(BasicBlock):
    """torchvision's block with a dilated first convolution, as mmsegmentation's."""

    def __init__(self, inplanes, planes, stride=1, downsample=None, groups=1, base_width=64, dilation=1,
                 norm_layer=None):
        super().__init__(inplanes, planes, stride, downsample, groups, base_width, 1, norm_layer)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, dilation, dilation, bias=False)


def mobilenet_features(output_stride):
    """Of torchvision's mobilenet_v2, without the last convolution: the first block of a group keeps the dilation."""
    features = mobilenet_v2().features[:-1]
    groups = {16: [(14, 2), (17, 2)], 8: [(7, 2), (11, 2), (14, 4), (17, 4)]}[output_stride]
    first = {16: {14: 1}, 8: {7: 1, 14: 2}}[output_stride]
    for start, rate in groups:
        for index in range(start, 18):
            for conv in features[index].modules():
                if isinstance(conv, nn.Conv2d) and conv.groups > 1:
                    now = first.get(index, rate)
                    conv.stride, conv.dilation, conv.padding = (1, 1), (now, now), (now, now)
    return features


class DeepLabMobileNet(nn.Module):
    def __init__(self, classes, output_stride):
        super().__init__()
        self.features = mobilenet_features(output_stride)
        self.classifier = DeepLabHead(320, classes, tuple(rate * 8 // output_stride for rate in (12, 24, 36)))

    def forward(self, x):
        return interpolate(self.classifier(self.features(x)), x.shape[2:], mode="bilinear", align_corners=False)


class PlusHead(nn.Module):
    def __init__(self, channels, early, classes, rates):
        super().__init__()
        self.project = nn.Sequential(*triple(early, 48, 1))
        self.aspp = ASPP(channels, rates)
        self.classifier = nn.Sequential(*triple(304, 256, 3, 1, 1), nn.Conv2d(256, classes, 1))

    def forward(self, last, early):
        fine = self.project(early)
        coarse = interpolate(self.aspp(last), fine.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(torch.cat([fine, coarse], 1))


class PlusResNet18(nn.Module):
    def __init__(self, classes, output_stride):
        super().__init__()
        net = ResNet(DilatedBlock, [2, 2, 2, 2], replace_stride_with_dilation=[False, output_stride == 8, True])
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(net, name))
        self.maxpool = net.maxpool
        self.classifier = PlusHead(512, 64, classes, [rate * 8 // output_stride for rate in (12, 24, 36)])

    def forward(self, x):
        early = self.layer1(self.maxpool(relu(self.bn1(self.conv1(x)))))
        y = self.classifier(self.layer4(self.layer3(self.layer2(early))), early)
        return interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)


class PlusMobileNet(nn.Module):
    def __init__(self, classes, output_stride):
        super().__init__()
        features = mobilenet_features(output_stride)
        self.low_level_features, self.high_level_features = features[:4], features[4:]
        self.classifier = PlusHead(320, 24, classes, [rate * 8 // output_stride for rate in (12, 24, 36)])

    def forward(self, x):
        early = self.low_level_features(x)
        y = self.classifier(self.high_level_features(early), early)
        return interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)


class Ppm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.features = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(bins), *triple(channels, channels // 4, 1))
                                      for bins in (1, 2, 3, 6))

    def forward(self, x):
        levels = [interpolate(level(x), x.shape[2:], mode="bilinear", align_corners=True) for level in self.features]
        return torch.cat([x, *levels], 1)


class PspNet(nn.Module):
    def __init__(self, block, blocks, classes):
        super().__init__()
        net = ResNet(block, blocks)
        net.inplanes = 128
        net.layer1 = net._make_layer(block, 64, blocks[0])
        self.layer0 = nn.Sequential(*triple(3, 64, 3, 2, 1), *triple(64, 64, 3, 1, 1), *triple(64, 128, 3, 1, 1),
                                    nn.MaxPool2d(3, 2, 1))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(net, name))
        inner = "conv1" if block is BasicBlock else "conv2"
        for layer, rate in ((self.layer3, 2), (self.layer4, 4)):
            for name, module in layer.named_modules():
                if name.endswith(inner):
                    module.dilation, module.padding, module.stride = (rate, rate), (rate, rate), (1, 1)
                elif name.endswith("downsample.0"):
                    module.stride = (1, 1)
        channels = 512 * block.expansion
        self.ppm = Ppm(channels)
        self.cls = nn.Sequential(*triple(2 * channels, channels // 4, 3, 1, 1), nn.Dropout2d(0.1),
                                 nn.Conv2d(channels // 4, classes, 1))

    def forward(self, x):
        y = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(x)))))
        return interpolate(self.cls(self.ppm(y)), x.shape[2:], mode="bilinear", align_corners=True)
