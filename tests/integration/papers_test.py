#!/usr/bin/env python3
"""The job files of examples/papers run: two steps of each, at a small width and size, on generated data in the layout that the file asks
for. (That they are accepted as they are, beside teachers of full size, is tested by coordinator_jobfile_test.)

    papers_test.py BINARIES [DATA_SET...]     of all data sets, or of these: cifar100 ...

Teachers are made by one step of their own job files (of ImageNet, whose teachers come from torchvision, by a student's file without a
teacher)."""
import io
import pathlib
import random
import re
import sys
import tarfile
import tempfile

import yaml
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "deploy"))
from operations_cluster import SOURCE, Cluster, wait_for  # noqa: E402

PAPERS = SOURCE / "examples/papers"
TRAIN, TEST = 8, 4  # images of each set
BATCH = 4

# Of each data set: the teachers (name, architecture), and what makes its jobs small beside the settings of `small()`.
CROP = "data.transforms.train.1.random_crop.size"
SETS = {
    "cifar100": ([("wrn-40-2", "cifar_wrn_40_2"), ("resnet56", "cifar_resnet56"), ("resnet110", "cifar_resnet110"),
                  ("resnet32x4", "cifar_resnet32x4"), ("vgg13", "cifar_vgg13_bn")], {}),
    "imagenet": ([("resnet34", "resnet34"), ("resnet50", "resnet50")],
                 {"student.image": [64, 64], "data.transforms.train.0.random_resized_crop.size": 64,
                  "data.transforms.test.0.resize.size": 64, "data.transforms.test.1.center_crop.size": 64}),
    "cityscapes": ([("cityscapes-pspnet-r101", "pspnet_resnet101"), ("cityscapes-deeplabv3-r101", "deeplabv3_resnet101")], {}),
    "ade20k": ([("ade20k-pspnet-r101", "pspnet_resnet101")], {}),
    "voc": ([("voc-deeplabv3plus-r101", "deeplabv3plus_resnet101_os16")], {}),
    "coco-stuff10k": ([("coco-stuff10k-deeplabv3plus-r101", "deeplabv3plus_resnet101_os16")], {}),
}
SEGMENTATION = {"student.image": [64, 64], CROP: [64, 64], "data.transforms.test.0.resize.size": [64, 64]}
TAT_PATCHES = {"grid_rows": 4, "grid_cols": 4, "groups": 4, "anchor_kernel": 2}  # for maps of 16 x 16


def small(name, job):
    """Overrides, key to value, that cut a job to a few seconds. These are the ones that examples/papers/README.md shows."""
    changes = {"students": 1, "threads": 1, "device": "cpu", "batch_size": BATCH, "data.train_size": TRAIN, "student.width": 8}
    for key in ("weights", "weights_modules"):
        if key in job["student"]:
            changes[f"student.{key}"] = None
    if "budget" in job:
        changes["budget"] = {"steps": 8 if job["preset"] == "sskd" else 1}
    for i, stage in enumerate(job.get("stages", [])):
        changes.update({f"stages.{i}.steps": 2, **({f"stages.{i}.epochs": None} if "epochs" in stage else {})})
        for k, loss in enumerate(stage["losses"]):
            if loss.get("mode") == "hierarchical":
                changes.update({f"stages.{i}.losses.{k}.{knob}": value for knob, value in TAT_PATCHES.items()})
    changes.update(SETS[name][1] if job["data"]["format"] != "segmentation_folder" else SEGMENTATION)
    return changes


def flags(changes):
    return [word for key, value in changes.items() for word in ("--set", f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")]


class Data:
    """Small data sets, each as its owners pack it."""

    def __init__(self, root):
        self.root, self.random = root, random.Random(1)
        for write in (self.cifar100, self.imagenet, self.cityscapes, self.voc, self.coco_stuff, self.ade20k):
            write()

    def picture(self, path, size, kind="JPEG"):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        rough = Image.frombytes("RGB", (8, 8), self.random.randbytes(192))
        rough.resize(size, Image.Resampling.BILINEAR).save(path, kind)

    def labels(self, path, size, ids, mode="L"):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = Image.frombytes("L", (4, 4), bytes(self.random.choice(ids) for _ in range(16))).resize(size, Image.Resampling.NEAREST)
        if mode == "P":  # as VOC's, colours by id
            labels = labels.convert("L")
            labels.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
        labels.save(path)

    def lines(self, path, names):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))

    def cifar100(self):
        (self.root / "cifar-100").mkdir(parents=True)
        with tarfile.open(self.root / "cifar-100/cifar-100-binary.tar.gz", "w:gz") as archive:
            for split, count in (("train", TRAIN), ("test", TEST)):
                records = b"".join(bytes([i % 20, i % 100]) + self.random.randbytes(3072) for i in range(count))
                member = tarfile.TarInfo(f"cifar-100-binary/{split}.bin")
                member.size = len(records)
                archive.addfile(member, io.BytesIO(records))

    def imagenet(self):
        for split, count in (("train", TRAIN), ("test", TEST)):
            for i in range(count):
                wnid = ("n01440764", "n01443537")[i % 2]
                self.picture(f"imagenet/{split}/{wnid}/{wnid}_{i}.JPEG", (96, 80))

    def cityscapes(self):
        for split, count, towns in (("train", TRAIN, ("aachen", "bremen")), ("val", TEST, ("frankfurt", "lindau"))):
            for i in range(count):
                town = towns[i % 2]
                name = f"{town}/{town}_{i:06}_000019"
                self.picture(f"cityscapes/leftImg8bit/{split}/{name}_leftImg8bit.png", (160, 80), "PNG")
                self.labels(f"cityscapes/gtFine/{split}/{name}_gtFine_labelIds.png", (160, 80), [0, 3, 7, 11, 23, 26, 33])
                self.labels(f"cityscapes/gtFine/{split}/{name}_gtFine_instanceIds.png", (160, 80), [0, 7])  # beside, not asked for

    def voc(self):
        names = {"train_aug": [f"2007_{i:06}" for i in range(TRAIN)], "val": [f"2008_{i:06}" for i in range(TEST)]}
        for split, listed in names.items():
            self.lines(f"voc2012/ImageSets/Segmentation/{split}.txt", listed)
            for name in listed:
                self.picture(f"voc2012/JPEGImages/{name}.jpg", (100, 75))
                folder, mode = ("SegmentationClassAug", "L") if split == "train_aug" else ("SegmentationClass", "P")
                self.labels(f"voc2012/{folder}/{name}.png", (100, 75), [0, 1, 15, 20, 255], mode)
        self.picture("voc2012/JPEGImages/2009_000001.jpg", (100, 75))  # of no list

    def coco_stuff(self):
        for split, count in (("train", TRAIN), ("test", TEST)):
            names = [f"COCO_train2014_{split}{i:08}" for i in range(count)]
            self.lines(f"cocostuff-10k/imageLists/{split}.txt", names)
            for name in names:
                self.picture(f"cocostuff-10k/images/{name}.jpg", (100, 75))
                self.labels(f"cocostuff-10k/annotations/{name}.png", (100, 75), [0, 1, 92, 106, 182])

    def ade20k(self):
        for split, short, count in (("training", "train", TRAIN), ("validation", "val", TEST)):
            for i in range(count):
                self.picture(f"ade20k/images/{split}/ADE_{short}_{i + 1:08}.jpg", (100, 75))
                self.labels(f"ade20k/annotations/{split}/ADE_{short}_{i + 1:08}.png", (100, 75), [0, 1, 2, 75, 150])


def run_all(cluster, jobs):
    """Submits all, then waits: `jobs` are (file, overrides, name). Returns the folders of their results by name."""
    ids = {name: cluster.ctl("submit", file, "--name", name, "-q", *flags(changes)).stdout.strip() for file, changes, name in jobs}
    for job in ids.values():
        cluster.wait_job(job, seconds=300)
    return {name: cluster.folder / "work" / job for name, job in ids.items()}


def main():
    binaries, *chosen = sys.argv[1:]
    files = {path: yaml.safe_load(path.read_text()) for path in sorted(PAPERS.glob("*/*.yaml"))}
    assert {path.parent.name for path in files} == set(SETS), "each folder is one data set of SETS, and each has files"
    readme = (PAPERS / "README.md").read_text()
    for path in files:
        text = path.read_text()
        for part in ("# Aims at: ", "# Needs: "):
            assert part in text, f"{path} does not say '{part}'"
        assert f"({path.relative_to(PAPERS)})" in readme, f"README.md has no link to {path.relative_to(PAPERS)}"

    with tempfile.TemporaryDirectory(prefix="papers_test.") as folder, Cluster(binaries, folder) as cluster:
        data = cluster.folder / "data"
        Data(data)
        cluster.start_coordinator("--heartbeat", "0.2", "--hold", "1")
        for i in range(2):
            cluster.start(f"student-{i}", "distill-student", "--id", f"student-{i}", "--coordinator", cluster.address, "--data-root", data,
                          "--work-dir", cluster.folder / "work", "--data-threads", "1")

        jobs, teachers_made = [], []
        for name, (teachers, _) in SETS.items():
            if chosen and name not in chosen:
                continue
            for teacher, arch in teachers:
                path = PAPERS / name / "teacher.yaml"
                alone = path in files
                if not alone:
                    path = next(p for p, job in files.items() if p.parent.name == name and job.get("teacher") == teacher)
                changes = {**small(name, files[path]), "student.arch": arch}
                if not alone:
                    changes = {key: value for key, value in changes.items() if not key.startswith("stages.")}
                    changes.update({"stages": None, "teacher": None, "preset": "scratch", "budget": {"steps": 1}})
                jobs.append((path, changes, teacher))
                teachers_made.append(teacher)
        results = run_all(cluster, jobs)
        served = [word for teacher in teachers_made for word in ("--model", f"{teacher}={results[teacher]}/student.safetensors")]
        cluster.start("teacher", "distill-teacher", "--id", "teacher", "--threads", "1", "--coordinator", cluster.address, *served)
        wait_for("the teacher is registered", lambda: teachers_made[-1] in cluster.ctl("fleet").stdout)

        jobs = []
        for path, job in files.items():
            if job.get("teacher") in teachers_made:
                jobs.append((path, small(path.parent.name, job), re.sub("[^a-z0-9]+", "-", f"{path.parent.name}-{path.stem}")))
        for name, result in run_all(cluster, jobs).items():
            assert (result / "student.safetensors").exists(), name
            print(f"{name}: ran")
        assert chosen or len(jobs) == len([path for path in files if path.stem != "teacher"])


if __name__ == "__main__":
    main()
