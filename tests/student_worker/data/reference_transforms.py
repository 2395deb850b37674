"""Transforms of one picture as Pillow and torchvision do them, for transforms_test.cc.

reference_transforms.py FOLDER HEIGHT WIDTH: reads FOLDER/scene.raw (uint8 [3, H, W]), labels.raw ([H, W]) and
cases.txt, and writes the result of line i, in the same layout, to FOLDER/i.raw.
"""
import sys

import numpy
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment
from torchvision.transforms.v2 import functional as F

folder, height, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
scene = numpy.fromfile(f"{folder}/scene.raw", numpy.uint8).reshape(3, height, width)
labels = numpy.fromfile(f"{folder}/labels.raw", numpy.uint8).reshape(height, width)
tensor = torch.from_numpy(scene)


def resized(array, top, left, crop_height, crop_width, to_height, to_width, resample):
    image = Image.fromarray(array).crop((left, top, left + crop_width, top + crop_height))
    return numpy.asarray(image.resize((to_width, to_height), resample))


for i, line in enumerate(open(f"{folder}/cases.txt")):
    name, *texts = line.split()
    values = [] if name in ("augment", "magnitude") else [float(text) for text in texts]
    if name == "resize":
        result = resized(scene.transpose(1, 2, 0), *map(int, values), Image.BILINEAR).transpose(2, 0, 1)
    elif name == "nearest":
        result = resized(labels, *map(int, values), Image.NEAREST)
    elif name == "gray":
        result = F.rgb_to_grayscale(tensor, num_output_channels=3).numpy()
    elif name == "augment":
        augment = RandAugment()
        result = augment._apply_image_or_video_transform(
            tensor, texts[0], float(texts[1]), interpolation=InterpolationMode.NEAREST, fill={Tensor: float(texts[2])})
        result = result.numpy()
    elif name == "magnitude":
        op, bin, bins = texts[0], int(texts[1]), int(texts[2])
        magnitudes = RandAugment._AUGMENTATION_SPACE[op][0](bins, height, width)
        result = numpy.array([0.0 if magnitudes is None else float(magnitudes[bin])])
    elif name == "blur":
        result = F.gaussian_blur(tensor, int(values[0]), values[1]).numpy()
    else:
        result = getattr(F, f"adjust_{name}")(tensor, values[0]).numpy()
    numpy.ascontiguousarray(result).tofile(f"{folder}/{i}.raw")
