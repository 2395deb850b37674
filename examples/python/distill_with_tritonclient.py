#!/usr/bin/env python3
"""Your own PyTorch loop, taught by a teacher of this project through NVIDIA's tritonclient (pip install torch "tritonclient[grpc]").

    distill-teacher --model fashion=examples/teachers/fashion-resnet20.safetensors --listen 127.0.0.1:9000 &
    python examples/python/distill_with_tritonclient.py --teacher 127.0.0.1:9000 --model fashion --data /usr/share/datasets/fashion-mnist

A small student learns Fashion-MNIST from the labels, the teacher's logits, and its last feature map. Requests for the coming batches
are under way while one trains. The teacher gets the pixels as they are, and normalises them itself."""
import argparse
import collections
import gzip
import queue

import numpy as np
import torch
import tritonclient.grpc as triton
from torch import nn
from torch.nn import functional as F


def read_idx(path):
    with gzip.open(path, "rb") as file:
        data = file.read()
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


class Student(nn.Module):
    def __init__(self, tap_channels):
        super().__init__()
        conv = lambda i, o, stride: nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU())
        self.body = nn.Sequential(conv(1, 8, 1), conv(8, 16, 2), conv(16, 32, 2))
        self.adapter = nn.Conv2d(32, tap_channels, 1)  # to the teacher's channels; only the loss needs it
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        features = self.body(x)
        return self.head(features.mean((2, 3))), self.adapter(features)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="127.0.0.1:9000", help="HOST:PORT of distill-teacher")
    parser.add_argument("--model", default="fashion")
    parser.add_argument("--tap", default="layer3", help="a feature map of 7x7, the size of the student's last")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--steps", type=int, default=470)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = (read_idx(f"{args.data}/train-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    images = images[:, None]  # [60000, 1, 28, 28]
    client = triton.InferenceServerClient(args.teacher)
    shapes = {output.name: output.shape for output in client.get_model_metadata(args.model).outputs}
    outputs = [triton.InferRequestedOutput(name) for name in ("output", args.tap)]

    random = np.random.default_rng(0)

    def ask():  # for a random batch; its answer comes into the queue
        picked = random.choice(len(images), args.batch, replace=False)
        pixels = triton.InferInput("images", [args.batch, 1, 28, 28], "UINT8")
        pixels.set_data_from_numpy(images[picked])
        answer = queue.Queue()
        client.async_infer(args.model, [pixels], lambda result, error: answer.put(error or result), outputs=outputs)
        return picked, answer

    student = Student(tap_channels=shapes[args.tap][1])
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    under_way = collections.deque(ask() for _ in range(4))
    for step in range(1, args.steps + 1):
        picked, answer = under_way.popleft()
        under_way.append(ask())
        result = answer.get()
        if isinstance(result, Exception):
            raise result
        teacher_logits, teacher_map = (torch.tensor(result.as_numpy(name)) for name in ("output", args.tap))
        logits, student_map = student((torch.tensor(images[picked]) / 255 - 0.286) / 0.353)
        loss = 0.1 * F.cross_entropy(logits, torch.tensor(labels[picked]).long())
        loss += 0.9 * 16 * F.kl_div(F.log_softmax(logits / 4, 1), F.log_softmax(teacher_logits / 4, 1), reduction="batchmean", log_target=True)
        loss += F.mse_loss(student_map, teacher_map)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 1 or step % 10 == 0:
            right = (logits.argmax(1) == torch.tensor(labels[picked])).float().mean()
            print(f"step {step}: loss {loss.item():.3f}, accuracy {right.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
