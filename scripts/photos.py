#!/usr/bin/env python3
"""Looks through a folder of photographs for scripts/photos_demo.sh, and asks the teacher about some of them.

    photos.py look FOLDER OUT                what can be used: OUT/data/photos.csv to train on, OUT/held-out.txt
    photos.py ask OUT TEACHER.pt             the teacher's answers to those held out: OUT/data/test.csv
    photos.py plan OUT                       prints the data root and the lists' folder below it, and a digest of the lists
    photos.py tell OUT RESULTS.json          what was reached, from `distillctl results --output json`

The lists are those of the job file's data format image_list. Nothing is written into FOLDER. What was found is kept in
OUT/pictures.json, by path, size and date, so that a second run opens new pictures only.

A photograph is held out by the hash of its path below FOLDER: a fifth of all, from 8 to 500. Its class in test.csv is
the teacher's first answer, so that top-1 accuracy on it is how often student and teacher agree.
"""
import collections
import csv
import hashlib
import json
import os
import pathlib
import stat
import sys
from concurrent.futures import ThreadPoolExecutor

ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"}  # as docs/job.md says of image folders
KINDS = {"JPEG", "MPO", "PNG", "WEBP"}  # Pillow's words; MPO: a JPEG with further pictures behind it, as telephones write
OTHER = {".heic", ".heif", ".avif", ".gif", ".tif", ".tiff", ".bmp", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
LITTER = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"}  # beside names that begin with a dot
FEWEST = 40  # one batch to train on, and 8 to measure on
NAMED = 10  # as many pictures are named on the screen; OUT/left-out.txt names all


def fail(message):
    sys.exit(f"error: {message}")


def find(folder, out):
    """(pictures, other formats by ending): all files below the folder, litter and `out` left out, sorted by path."""
    pictures, others = [], collections.Counter()
    for where, folders, files in os.walk(folder, followlinks=False, onerror=lambda error: fail(f"cannot read {error.filename}: {error.strerror}")):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in LITTER and os.path.realpath(os.path.join(where, f)) != out)
        for name in files:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith(".") or name in LITTER:
                continue
            if ending in ENDINGS:
                pictures.append(os.path.join(where, name))
            elif ending in OTHER:
                others[ending] += 1
    return sorted(pictures), others


def problem_of(path):
    """Why the picture cannot be used; empty: it can. Decodes all of it."""
    from PIL import Image
    if "\n" in path or "\r" in path:
        return "its name has a line break"
    if os.path.getsize(path) == 0:
        return "it is empty"
    try:
        with Image.open(path) as picture:
            if picture.format not in KINDS:
                return f"it is {picture.format}, neither JPEG nor PNG nor WebP"
            if picture.format == "WEBP" and picture.is_animated:
                return "it is an animation"
            picture.load()
    except Exception as error:  # Pillow's decoders raise what they like
        return str(error).replace(f" {path!r}", "") or type(error).__name__
    return ""


def listed(counter):
    return ", ".join(f"{count} {ending}" for ending, count in sorted(counter.items()))


def look(folder, out):
    folder, out = os.path.realpath(folder), os.path.realpath(out)
    cache_file = pathlib.Path(out, "pictures.json")
    try:
        before = json.loads(cache_file.read_text())
    except (OSError, ValueError):
        before = {}
    paths, others = find(folder, out)
    convert = f"; {listed(others)} are in formats that are not read: convert them to JPEG" if others else ""
    if not paths:
        fail(f"no photographs in {folder}: neither it nor its folders hold a file {', '.join(sorted(ENDINGS))}{convert}")

    def state(path):
        real = os.path.realpath(path)
        try:
            info = os.stat(real)
        except OSError as error:
            return {"problem": f"it is a link that leads nowhere: {error.strerror}"}
        if not stat.S_ISREG(info.st_mode):
            return {"problem": "it is no file"}
        known = before.get(real, {"problem": "new"})  # a problem may have been mended
        if not known["problem"] and known["size"] == info.st_size and known["date"] == info.st_mtime_ns:
            return {**known, "real": real}
        return {"size": info.st_size, "date": info.st_mtime_ns, "real": real, "problem": problem_of(real)}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        states = list(pool.map(state, paths))
    usable, bad, seen = [], [], set()
    for path, found in zip(paths, states):
        if found["problem"]:
            bad.append((path, found["problem"]))
        elif found["real"] not in seen:  # two links to one picture
            seen.add(found["real"])
            usable.append((os.path.relpath(path, folder), found["real"]))
    write_lines(os.path.join(out, "left-out.txt"), [f"{path}: {why}" for path, why in bad])
    for path, why in bad[:NAMED]:
        print(f"left out: {os.path.relpath(path, folder)}: {why}")
    if len(bad) > NAMED:
        print(f"left out: {len(bad) - NAMED} more; {out}/left-out.txt names all {len(bad)}")
    if others:
        print(f"left out: {listed(others)}: only JPEG, PNG and WebP are read; convert the others to have them")
    if len(usable) < FEWEST:
        fail(f"{folder} has {len(usable)} photographs that can be read{f' and {len(bad)} that cannot' if bad else ''}; "
             f"at least {FEWEST} are needed, and hundreds to see much{convert}")

    usable.sort(key=lambda item: hashlib.sha256(os.fsencode(item[0])).digest())
    held_out = usable[: max(8, min(500, len(usable) // 5))]
    train = sorted(usable[len(held_out):])
    os.makedirs(os.path.join(out, "data"), exist_ok=True)
    write_list(os.path.join(out, "data/photos.csv"), [[real] for _, real in train])
    write_lines(os.path.join(out, "held-out.txt"), [real for _, real in sorted(held_out)])
    keep = {s["real"]: {k: s[k] for k in ("size", "date", "problem", "answer") if k in s} for s in states if "real" in s}
    cache_file.write_text(json.dumps(keep))
    print(f"{len(usable)} photographs in {folder}: {len(train)} to learn from, {len(held_out)} held out")


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:  # names need not be UTF-8
        file.write("".join(f"{line}\n" for line in lines))


def read_list(path):
    """The rows of an image list without their heading."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))[1:]


def write_list(path, rows):
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        file.write("path,class\n" if rows and len(rows[0]) > 1 else "path\n")
        csv.writer(file, lineterminator="\n").writerows(rows)


def held_out_of(out):
    return pathlib.Path(out, "held-out.txt").read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]


def ask(out, teacher):
    cache_file = pathlib.Path(out, "pictures.json")
    known = json.loads(cache_file.read_text())
    digest = hashlib.sha256(pathlib.Path(teacher).read_bytes()).hexdigest()[:16]
    paths = held_out_of(out)
    new = [path for path in paths if known[path].get("answer", [None])[0] != digest]
    if new:
        for path, answer in zip(new, answers_of(teacher, new)):
            known[path]["answer"] = [digest, answer]
        cache_file.write_text(json.dumps(known))
    write_list(os.path.join(out, "data/test.csv"), [[path, known[path]["answer"][1]] for path in paths])


def answers_of(teacher, paths):
    """The teacher's first answer for each picture."""
    import torch
    from PIL import Image, ImageOps
    description = pathlib.Path(teacher + ".yaml").read_text()

    def numbers(key):
        line = next(line for line in description.splitlines() if line.startswith(f"{key}: "))
        return torch.tensor(json.loads(line.split(": ", 1)[1]))

    mean, std = numbers("mean").view(3, 1, 1), numbers("std").view(3, 1, 1)
    network = torch.jit.load(teacher).eval()

    def pixels(path):  # what the job's transforms for testing do: short side to 256, the middle 224 x 224
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture).convert("RGB")
        width, height = picture.size
        short = min(width, height)
        picture = picture.resize((256 * width // short, 256 * height // short), Image.Resampling.BILINEAR)
        left, top = round((picture.width - 224) / 2), round((picture.height - 224) / 2)
        picture = picture.crop((left, top, left + 224, top + 224))
        flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return (flat.view(224, 224, 3).permute(2, 0, 1) / 255 - mean) / std

    answers = []
    with torch.no_grad():
        for start in range(0, len(paths), 16):
            answers += network(torch.stack([pixels(path) for path in paths[start: start + 16]]))["output"].argmax(1).tolist()
    return answers


def plan(out):
    lists = [os.path.join(os.path.realpath(out), "data", name) for name in ("photos.csv", "test.csv")]
    photographs = [row[0] for file in lists for row in read_list(file)]
    root = os.path.commonpath([os.path.dirname(path) for path in lists + photographs])
    digest = hashlib.sha256(b"".join(pathlib.Path(file).read_bytes() for file in lists)).hexdigest()[:16]
    print(root)
    print(os.path.relpath(os.path.dirname(lists[0]), root))
    print(digest)


def tell(out, results):
    (row,) = json.loads(pathlib.Path(results).read_text())["results"]
    classes = [int(row[1]) for row in read_list(os.path.join(out, "data/test.csv"))]
    count = len(classes)
    agree = round(row["student_score"]["top1"] * count)
    near = round(row["student_score"]["top5"] * count)
    commonest = collections.Counter(classes).most_common(1)[0][1]
    print(f"On {count} photographs that it never saw, the student's first answer of 1000 is the teacher's on {agree} ({100 * agree / count:.0f} %), "
          f"and among the student's first five on {near} ({100 * near / count:.0f} %); "
          f"to say the commonest answer always would agree on {commonest} ({100 * commonest / count:.0f} %).")


def main():
    sys.stdout.reconfigure(errors="backslashreplace")
    commands = {"look": (look, 2), "ask": (ask, 2), "plan": (plan, 1), "tell": (tell, 2)}
    name, *arguments = sys.argv[1:] or [""]
    if name not in commands or len(arguments) != commands[name][1]:
        sys.exit(__doc__)
    commands[name][0](*arguments)


if __name__ == "__main__":
    main()
