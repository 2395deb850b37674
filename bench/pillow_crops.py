#!/usr/bin/env python3
"""The baseline of data_bench: the crops of LIST by Pillow and torchvision, one thread.

    pillow_crops.py LIST SIZE [OUT]

LIST: one picture a line, tab-separated: path, top, left, height, width of the crop, 1 to mirror. SIZE: of the result,
both sides. OUT gets the results, uint8 [n, 3, SIZE, SIZE]. Prints "CPU-seconds what-ran". Without torchvision Pillow does
all of it, and that is said.
"""
import sys
import time

import numpy
from PIL import Image, ImageOps

try:
    import torch
    import torchvision
    from torchvision.transforms import functional

    torch.set_num_threads(1)
    WHAT = f"Pillow {Image.__version__}, torchvision {torchvision.__version__}"
except ImportError:
    functional = None
    WHAT = f"Pillow {Image.__version__} alone"


def crop(path, top, left, height, width, mirror, size):
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if functional is None:
        picture = picture.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
        if mirror:
            picture = ImageOps.mirror(picture)
        return numpy.ascontiguousarray(numpy.asarray(picture).transpose(2, 0, 1))
    picture = functional.resized_crop(picture, top, left, height, width, [size, size])  # bilinear
    if mirror:
        picture = functional.hflip(picture)
    return functional.pil_to_tensor(picture).numpy()


def main():
    lines = [line.rstrip("\n").split("\t") for line in open(sys.argv[1], encoding="utf-8")]
    crops = [(line[0], *map(int, line[1:])) for line in lines]
    size = int(sys.argv[2])
    crop(*crops[0], size)  # what is loaded at first use
    begin = time.process_time()
    results = [crop(*one, size) for one in crops]
    print(time.process_time() - begin, WHAT)
    if len(sys.argv) > 3:
        numpy.stack(results).tofile(sys.argv[3])


if __name__ == "__main__":
    main()
