"""What pyproject.toml cannot say: the wheel holds programs, so it belongs to a platform but to no version of Python,
and there is a command for each program."""
import pathlib

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class BinaryDistribution(Distribution):
    def has_ext_modules(self):  # into the same folder as torch, where a system has one for packages with machine code
        return True


class BinaryWheel(bdist_wheel):
    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


programs = sorted(path.name for path in pathlib.Path("distillery/bin").iterdir())
setup(distclass=BinaryDistribution, cmdclass={"bdist_wheel": BinaryWheel},
      entry_points={"console_scripts": ["distill-demo = distillery.programs:demo", "distill-export = distillery.programs:export"] +
                    [f"{name} = distillery.programs:run" for name in programs]})
