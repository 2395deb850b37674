"""Loads an exported student in plain Python and compares: safetensors in a torchvision-built network, the TorchScript
archive, and the accuracy that the service reported; of a segmentation network (fcn_resnet*) also the mean intersection
over union.

usage: check_student.py STUDENT.safetensors STUDENT.pt DATA_FOLDER TEST_IMAGES REPORTED_ACCURACY
                        [REPORTED_MEAN_IOU [IGNORE_LABEL [one|flip]]]

DATA_FOLDER: IDX files, or for a segmentation network images/{test,val} and labels/{test,val}, whose size is the
network's. flip: answers are those of an image and of its mirror image together.
"""
import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.segmentation.fcn import FCNHead


def stage(block, channels, planes, blocks, stride, dilations):
    """A stage of residual blocks; dilations: of the first block, of the others."""
    layers = []
    for k in range(blocks):
        step, dilation = (stride, dilations[0]) if k == 0 else (1, dilations[1])
        out, down = planes * block.expansion, None
        if step != 1 or channels != out:
            down = nn.Sequential(nn.Conv2d(channels, out, 1, step, bias=False), nn.BatchNorm2d(out))
        if block is BasicBlock:  # which dilates nothing: its first convolution is made anew
            layers.append(block(channels, planes, step, down))
            layers[-1].conv1 = nn.Conv2d(channels, planes, 3, step, dilation, dilation, bias=False)
        else:
            layers.append(block(channels, planes, step, down, dilation=dilation))
        channels = out
    return nn.Sequential(*layers), channels


class CifarResNet(nn.Module):
    """The CIFAR ResNet of the distillation papers, from torchvision's own blocks."""

    def __init__(self, depth, width, in_channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        channels = width
        for k in range(3):
            layer, channels = stage(BasicBlock, channels, width << k, (depth - 2) // 6, 2 if k else 1, (1, 1))
            setattr(self, f"layer{k + 1}", layer)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class FcnResNet(nn.Module):
    """torchvision's fcn_resnet50 and 101, and their like of BasicBlocks, in any width. Names without `backbone.`."""

    BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

    def __init__(self, depth, width, in_channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for k, (stride, dilations) in enumerate([(1, (1, 1)), (2, (1, 1)), (1, (1, 2)), (1, (2, 4))]):
            layer, channels = stage(BasicBlock if depth < 50 else Bottleneck, channels, width << k, self.BLOCKS[depth][k],
                                    stride, dilations)
            setattr(self, f"layer{k + 1}", layer)
        self.classifier = FCNHead(channels, classes)

    def forward(self, x):
        y = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        y = self.classifier(self.layer4(self.layer3(self.layer2(self.layer1(y)))))
        return nn.functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


def read_idx(data, count):
    with gzip.open(f"{data}/t10k-images-idx3-ubyte.gz") as f:
        pixels = np.frombuffer(f.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:count]
    with gzip.open(f"{data}/t10k-labels-idx1-ubyte.gz") as f:
        labels = np.frombuffer(f.read(), np.uint8, offset=8)[:count]
    return torch.tensor(pixels.copy()), torch.tensor(labels.astype(np.int64))


def read_segmentation(data, count):
    split = next(name for name in ("test", "val") if (Path(data) / "images" / name).is_dir())
    files = sorted((Path(data) / "images" / split).iterdir())
    assert len(files) == count, f"{len(files)} images in {data}/images/{split}, not {count}"
    pixels, labels = [], []
    for file in files:
        image = np.array(Image.open(file))
        pixels.append(torch.tensor(image[None] if image.ndim == 2 else image.transpose(2, 0, 1).copy()))
        labels.append(torch.tensor(np.array(Image.open(Path(data) / "labels" / split / f"{file.stem}.png")).astype(np.int64)))
    return torch.stack(pixels), torch.stack(labels)


def mean_iou(answers, labels, classes):
    """Over classes; one with no pixel in labels and answers is left out."""
    shares = []
    for k in range(classes):
        union = ((answers == k) | (labels == k)).sum().item()
        if union:
            shares.append(((answers == k) & (labels == k)).sum().item() / union)
    return sum(shares) / len(shares)


def main():
    weights, script, data, count, reported = sys.argv[1:6]
    count, reported = int(count), float(reported)
    with safe_open(weights, "pt") as f:
        meta = f.metadata()
    family, depth = meta["distill.arch"].split("_resnet")
    dense, classes = family == "fcn", int(meta["distill.num_classes"])
    net = (FcnResNet if dense else CifarResNet)(int(depth), int(meta["distill.width"]), int(meta["distill.in_channels"]), classes)
    net.load_state_dict(load_file(weights), strict=True)
    net.eval()
    archive = torch.jit.load(script).eval()
    assert set(archive.state_dict()) == set(net.state_dict()), set(archive.state_dict()) ^ set(net.state_dict())

    pixels, labels = (read_segmentation if dense else read_idx)(data, count)
    mean, std = (torch.tensor([float(v) for v in meta[f"distill.{key}"].split(",") if v]).view(-1, 1, 1) for key in ("mean", "std"))
    answers, worst = [], 0.0
    with torch.inference_mode():
        for part in pixels.split(20 if dense else 500):
            x = part.float() / 255
            x = x - mean if mean.numel() else x
            x = x / std if std.numel() else x
            a, b = net(x), archive(x)
            worst = max(worst, (a - b).abs().max().item())
            scores = a.softmax(1) + net(x.flip(3)).softmax(1).flip(3) if sys.argv[8:] == ["flip"] else a
            answers.append(scores.argmax(1))
    assert worst < 1e-3, f"safetensors and TorchScript logits differ by {worst}"
    labelled = labels != (int(sys.argv[7]) if len(sys.argv) > 7 else 255) if dense else torch.ones_like(labels, dtype=torch.bool)
    answers, labels = torch.cat(answers)[labelled], labels[labelled]
    accuracy = (answers == labels).float().mean().item()
    # One image, or one pixel in a thousand, may flip: the service computes in another memory format.
    assert abs(accuracy - reported) <= (1e-3 if dense else 1.5 / count), f"accuracy {accuracy} here, {reported} reported"
    if len(sys.argv) > 6:
        iou = mean_iou(answers, labels, classes)
        assert abs(iou - float(sys.argv[6])) <= 5e-3, f"mean IoU {iou} here, {sys.argv[6]} reported"
    print(f"ok: accuracy {accuracy:.4f}, largest logit difference {worst:.2e}")


if __name__ == "__main__":
    main()
