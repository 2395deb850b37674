#!/usr/bin/env python3
"""The tree that `cmake --install` makes, and that the images are made of: all that its programs need is in it, and it
finds it there.

    installed_tree_test.py BUILD SCRATCH

Libraries that are copied as they are (LibTorch's, NVIDIA's: 3 GB) are links here; programs and the plugin, whose search
paths change on installation, are installed for real. Needs no GPU: an empty library stands for the driver's."""
import os
import pathlib
import re
import shutil
import subprocess
import sys

SYSTEM = ("/lib/", "/lib64/", "/usr/lib/")  # what the base image has is checked by deploy/docker/build_tree.sh
# Opened while running, by name, so that no linker tells of them. What for: see cmake/DistillInstall.cmake.
OPENED = ["libcaffe2_nvrtc.so", "libnvrtc.so.*", "libnvrtc-builtins.so.*"] + [
    f"libcudnn_{part}.so.9" for part in ("adv", "cnn", "engines_precompiled", "engines_runtime_compiled", "graph", "heuristic", "ops")]


def run(*argv, **options):
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=120, **options)


def install(build, tree, **environment):
    done = run("cmake", "--install", build, "--prefix", tree, "--strip", env=dict(os.environ, **environment))
    assert done.returncode == 0, done.stdout + done.stderr


def check_needs(file, tree):
    """All that the linker looks for, on every way from this file, is found in the tree or is the system's."""
    found = {}
    for line in run("ldd", file).stdout.splitlines():
        match = re.match(r"\s*(\S+) => (not found|/\S+)", line)
        if match:
            found[match.group(1)] = match.group(2)
    assert found, f"ldd tells nothing about {file}"
    for name, path in found.items():
        if path == "not found":
            # The driver is the host's.
            assert name == "libcuda.so.1", f"{file.name} needs {name}, which is not in the tree"
            continue
        path = os.path.normpath(path)
        assert path.startswith(f"{tree}/lib/") or path.startswith(SYSTEM), f"{file.name} finds {name} at {path}, outside of the tree"


def main():
    build, tree = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    shutil.rmtree(tree, ignore_errors=True)
    try:
        check(build, tree)
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def check(build, tree):
    install(build, tree, CMAKE_INSTALL_MODE="ABS_SYMLINK")
    for file in list(tree.glob("*/*")):
        if file.resolve().is_relative_to(build):
            file.unlink()
    install(build, tree)  # the rest is up to date
    programs = sorted((tree / "bin").iterdir())
    libraries = sorted((tree / "lib").iterdir())
    print(f"{len(programs)} programs, {len(libraries)} libraries")
    assert {p.name for p in programs} >= {"distill-coordinator", "distillctl"}, programs
    assert not [p for p in programs if p.is_symlink()], "programs are installed for real"

    for file in programs + libraries:
        check_needs(file, tree)
    for program in programs:
        shown = run(program, "--version")
        assert shown.returncode == 0 and re.match(r"\d+\.\d+\.\d+ \((cpu|cuda)\)\n", shown.stdout), f"{program.name}: {shown}"

    plugin = tree / "lib/libdistill_cuda.so"
    if not plugin.exists():
        print("this build has no CUDA plugin: its libraries are not checked")
        return
    for pattern in OPENED:
        assert list((tree / "lib").glob(pattern)), f"lib/{pattern} is not in the tree"
    # The plugin is loaded and asked for devices: none with an empty driver, whatever this machine has.
    driver = tree / "driver"
    driver.mkdir()
    done = run("cc", "-shared", "-fPIC", "-x", "c", "-", "-o", driver / "libcuda.so.1", input="int distill_no_driver;")
    assert done.returncode == 0, done.stderr
    teacher = [tree / "bin/distill-teacher", "--listen", "127.0.0.1:0", "--model", "none=none.safetensors", "--device", "cuda"]
    done = run(*teacher, env=dict(os.environ, LD_LIBRARY_PATH=str(driver), LD_DEBUG="files", LD_DEBUG_OUTPUT=str(driver / "files")))
    assert done.returncode == 42 and "no NVIDIA GPU or driver is visible" in done.stderr, f"{done.returncode}: {done.stderr}"
    loaded = {os.path.normpath(path) for log in driver.glob("files.*") for path in re.findall(r"calling init: (/\S+)", log.read_text())}
    assert str(tree / "lib/libtorch_cuda.so") in loaded, sorted(loaded)
    strange = [path for path in loaded if not path.startswith((f"{tree}/",) + SYSTEM)]
    assert not strange, f"loaded from outside of the tree: {strange}"
    print(f"the plugin loads: {len(loaded)} libraries")


if __name__ == "__main__":
    main()
