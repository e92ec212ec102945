"""Lets the unmodified nnU-Net find nnunet_ext's classes by name, in every interpreter of this environment.

Python calls `install` at start-up (`nnunet_ext.pth`; from Python 3.15 on `nnunet_ext.start`, PEP 829). It only puts
one finder on `sys.meta_path`; nothing more happens unless the interpreter imports nnU-Net's search for classes.
`NNUNET_EXT_AUTOLOAD=0` turns it off. Standard library only and short, because it runs in every interpreter.
"""

# mypy: ignore-errors
# (importlib's own types forbid replacing a loader's method, and typing is not worth importing here.)
import os
import sys

SEARCH = "nnunetv2.utilities.find_class_by_name"


def install():
    # Called twice where lib64 links to lib: Python then reads the start-up files of both.
    if os.environ.get("NNUNET_EXT_AUTOLOAD") == "0" or any(isinstance(finder, _Waiter) for finder in sys.meta_path):
        return
    if SEARCH in sys.modules:
        _attach(sys.modules[SEARCH])
    else:
        sys.meta_path.insert(0, _Waiter())


class _Waiter:
    """A finder that lets the others find `SEARCH`, attaches to the module once it has run, and removes itself."""

    def find_spec(self, name, path=None, target=None):
        if name != SEARCH:
            return None
        others = [finder.find_spec for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (find_spec(name, path, target) for find_spec in others)), None)

        def exec_module(module):
            del spec.loader.exec_module  # uncovers the loader's own method
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            spec.loader.exec_module(module)
            _attach(module)

        if hasattr(getattr(spec, "loader", None), "__dict__"):
            spec.loader.exec_module = exec_module
        return spec


def _attach(module):
    try:
        from nnunet_ext.discovery.lookup import attach

        attach(module)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"nnunet_ext: nnU-Net goes on without its classes ({reason})", file=sys.stderr)
