"""The commands that pip installs: each becomes the program of its name in distillery/bin.

The programs look for LibTorch in the `torch` beside this package, where pip puts it. Where torch is installed elsewhere
(a virtual environment with system packages, a .pth file), the launcher tells the loader by LD_LIBRARY_PATH. For
programs it never imports torch: they start as quickly as Python itself."""
import importlib.util
import os
import pathlib
import re
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent
TORCH_FREE = {"distill-coordinator", "distill-data", "distillctl"}  # these run where torch is not installed (pip install --no-deps)


def fail(message):
    sys.exit(f"error: {message}")


def torch_folder():
    """Folder of the torch that the programs will load."""
    beside = PACKAGE.parent / "torch"
    if (beside / "lib/libtorch_cpu.so").exists():
        return beside
    found = importlib.util.find_spec("torch")
    for folder in (found.submodule_search_locations or []) if found else []:
        if (pathlib.Path(folder) / "lib/libtorch_cpu.so").exists():
            return pathlib.Path(folder)
    return None


def environment():
    """The environment for a program that loads LibTorch. Ends with a message where the torch installed is not the one
    built for."""
    pin = (PACKAGE / "requirements.txt").read_text().strip()  # torch==2.11.0
    folder = torch_folder()
    if folder is None:
        fail(f"LibTorch is missing: no torch is installed for {sys.executable}; install it: {sys.executable} -m pip install {pin}")
    stated = re.search(r"__version__ = ['\"]([^'\"+]+)", (folder / "version.py").read_text())
    version = stated.group(1) if stated else "of unknown version"
    if pin != f"torch=={version}":
        fail(f"these programs were built for {pin}, but torch {version} is installed in {folder}; install the former: "
             f"{sys.executable} -m pip install {pin}")
    changed = dict(os.environ)
    if folder.parent != PACKAGE.parent:
        changed["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(folder / "lib"), os.environ.get("LD_LIBRARY_PATH")]))
    return changed


def run():
    """Entry point of every program: the launcher's name is the program's."""
    name = pathlib.Path(sys.argv[0]).name
    program = PACKAGE / "bin" / name
    os.execve(program, sys.argv, dict(os.environ) if name in TORCH_FREE else environment())


def export():
    """Entry point of distill-export: scripts/export_model.py of the sources."""
    environment()
    from distillery import export_model  # imports torch

    sys.exit(export_model.main())


def demo():
    """Entry point of distill-demo: the script that scripts/demo.sh of the sources runs after its build."""
    changed = environment()
    changed["DISTILL_BIN"] = str(PACKAGE / "bin")
    changed["DISTILL_PYTHON"] = sys.executable  # which has torch; --photos exports a network with it
    try:
        os.execvpe("bash", ["bash", str(PACKAGE / "scripts/distill_demo.sh"), *sys.argv[1:]], changed)
    except FileNotFoundError:
        fail("distill-demo is a bash script, and there is no bash on the PATH; install bash")
