"""Python imports this when it starts, where this folder is on PYTHONPATH: what it runs then takes half the time.

`resnet` builds networks of an eighth of the channels: what most tests look at is the same with them. torchmetrics
does not import scipy.signal, of which it mends a name that nothing here uses; an optimizer's first step does not
import torch's compiler, which it tells that nothing of it is to be compiled. conftest.py sets PYTHONPATH for the
processes that tests start; in its own the compiler stays.
"""

import importlib.machinery
import sys
import types
from unittest.mock import MagicMock

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
sys.modules["scipy.signal"] = types.ModuleType("scipy.signal")
sys.modules["scipy.signal"].hamming = None
if __name__ == "sitecustomize":  # and not where a test imports it
    compiler = MagicMock()
    compiler.disable = lambda function, *_, **__: function
    compiler.eval_frame.OptimizedModule = MagicMock  # of which no network is one
    for name in ("torch._dynamo", "torch._dynamo.utils", "torch._inductor", "torch._inductor.config"):
        sys.modules[name] = compiler
