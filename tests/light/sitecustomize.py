"""Python imports this when it starts, where this folder is on PYTHONPATH: what it runs then takes half the time.

`resnet` builds networks of an eighth of the channels: what most tests look at is the same with them. conftest.py
sets PYTHONPATH for the processes that tests start.
"""

import importlib.machinery
import sys
import types

NARROW = (8, 16, 32, 64)


class NarrowResNet:
    """Finds one module, whose network becomes narrow as it is imported: nothing is imported for it before."""

    @staticmethod
    def find_spec(name: str, path: list[str], target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != "resnet.resnet":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_narrow(module: types.ModuleType) -> None:
            load(module)
            module.WIDTHS = NARROW

        spec.loader.exec_module = load_narrow
        return spec


sys.meta_path.insert(0, NarrowResNet)
