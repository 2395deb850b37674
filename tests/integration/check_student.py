"""Loads an exported student in plain Python and compares: safetensors in a torchvision-built network, the TorchScript archive, and
the accuracy that the service reported.

usage: check_student.py STUDENT.safetensors STUDENT.pt DATA_FOLDER TEST_IMAGES REPORTED_ACCURACY
"""
import gzip
import sys

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.models.resnet import BasicBlock


class CifarResNet(torch.nn.Module):
    """The CIFAR ResNet of the distillation papers, from torchvision's own blocks."""

    def __init__(self, depth, width, in_channels, classes):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = torch.nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.relu = torch.nn.ReLU()
        channels = width
        for stage in range(3):
            out = width << stage
            layers = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                down = None
                if stride != 1 or channels != out:
                    down = torch.nn.Sequential(torch.nn.Conv2d(channels, out, 1, stride, bias=False), torch.nn.BatchNorm2d(out))
                layers.append(BasicBlock(channels, out, stride, down))
                channels = out
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*layers))
        self.fc = torch.nn.Linear(channels, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def main():
    weights, script, data, count, reported = sys.argv[1:]
    count, reported = int(count), float(reported)
    with safe_open(weights, "pt") as f:
        meta = f.metadata()
    net = CifarResNet(int(meta["distill.arch"].removeprefix("cifar_resnet")), int(meta["distill.width"]), int(meta["distill.in_channels"]),
                      int(meta["distill.num_classes"]))
    net.load_state_dict(load_file(weights), strict=True)
    net.eval()
    archive = torch.jit.load(script).eval()
    assert set(archive.state_dict()) == set(net.state_dict()), set(archive.state_dict()) ^ set(net.state_dict())

    with gzip.open(f"{data}/t10k-images-idx3-ubyte.gz") as f:
        pixels = np.frombuffer(f.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:count]
    with gzip.open(f"{data}/t10k-labels-idx1-ubyte.gz") as f:
        labels = torch.tensor(np.frombuffer(f.read(), np.uint8, offset=8)[:count].astype(np.int64))
    mean, std = float(meta["distill.mean"]), float(meta["distill.std"])
    x = (torch.tensor(pixels.copy()).float() / 255 - mean) / std
    with torch.inference_mode():
        a = torch.cat([net(part) for part in x.split(500)])
        b = torch.cat([archive(part) for part in x.split(500)])
    worst = (a - b).abs().max().item()
    assert worst < 1e-3, f"safetensors and TorchScript logits differ by {worst}"
    accuracy = (a.argmax(1) == labels).float().mean().item()
    # One image may flip: the service computes in another memory format.
    assert abs(accuracy - reported) <= 1.5 / count, f"accuracy {accuracy} here, {reported} reported"
    print(f"ok: accuracy {accuracy:.4f}, largest logit difference {worst:.2e}")


if __name__ == "__main__":
    main()
