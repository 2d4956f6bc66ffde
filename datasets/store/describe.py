# SPDX-License-Identifier: Apache-2.0
"""Settings of transforms in plain words and numbers, the same in every process, so that they can be hashed."""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import hashlib
import logging
import os
import random
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, NoReturn

import numpy as np
import torch
from monai.bundle import ReferenceResolver
from monai.data import MetaTensor
from torch import Tensor

__all__ = ["RUN_TIME_STATE", "describe", "is_function"]

RUN_TIME_STATE = {"R", "filenames"}
"""Attributes of MONAI's transforms and readers that are no settings."""

_NO_SETTINGS = (
    threading.local,
    type(threading.Lock()),
    type(threading.RLock()),
    logging.Logger,
    np.random.RandomState,
    np.random.Generator,
    random.Random,
    torch.Generator,
)
"""What code uses while it runs, without an effect on what a deterministic preprocessing gives."""

_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
)

_OWN = tuple(
    f"{__name__.rsplit('.', 3)[0]}.{package}."
    for package in ("datasets", "networks", "training", "transfer", "transforms")
)
"""Packages of this project; in a packed bundle they stand next to the user's own ``scripts``."""

_PACKAGES = (sys.stdlib_module_names - {"__main__"}) | {
    "ignite", "itk", "monai", "nibabel", "numba", "numpy", "pydicom", "scipy", "skimage", "sklearn", "torch",
}  # fmt: skip
"""Packages that are not the user's own wherever they lie, as MONAI in its own container."""

_REFERENCES = ReferenceResolver._vars
"""The global in which MONAI gives the values of ``@`` to an expression of a config."""


def describe(thing: Any, modules: bool = True, name: str = "") -> Any:
    """Describe transforms by classes and settings, in plain lists and numbers, so that they can be hashed.

    Functions are described by their code, nested code too, their defaults, what they close over, and the values of the
    globals that they name, among them those that ``@`` means in an expression of a config; ``functools.partial`` by
    function and arguments; arrays and tensors by type, shape and a hash of their values. Functions and classes of the
    user's own, named by others or used as transforms, are followed into their code; those of installed packages and of
    this one are described by their names: what they do may change with their versions alone. What code reads of its
    surroundings, such as environment variables, does not count.

    Random states and what a transform notes while it runs are left out: what is cached must not depend on them.

    Args:
        thing: transforms, or any setting of one.
        modules: whether names have their module, which differs between this package and a packed bundle.
        name: what messages call it.

    Returns:
        Lists, texts, numbers, and None.

    Raises:
        ValueError: When something has no description that another process would give too; it names the setting.

    Example:
        >>> from monai.transforms import Flip
        >>> describe(Flip(spatial_axis=1))
        ['monai.transforms.spatial.array.Flip', [['_lazy', False], ['spatial_axis', 1]]]
    """
    return _Describer(modules).of(thing, name)


def is_function(thing: Any) -> bool:
    """Say whether a thing is a function, of Python or of compiled code, rather than an object that can be called."""
    kinds = (types.FunctionType, types.MethodType, *_BUILT_IN)
    if isinstance(thing, type) or not callable(thing):
        return False
    return isinstance(thing, kinds) or hasattr(thing, "__wrapped__") or _is_global(thing)


class _Describer:
    """One description; it knows what it is in the middle of, for things may refer to themselves, and its functions."""

    def __init__(self, modules: bool) -> None:
        self.modules = modules
        self.open: list[Any] = []
        self.described: list[Any] = []

    def of(self, thing: Any, name: str) -> Any:
        """Describe a thing that a setting is called."""
        if thing is None or type(thing) in (bool, int, float, str):
            return thing
        for level, other in enumerate(reversed(self.open)):
            if other is thing:
                return ["the same as above", level]
        self.open.append(thing)
        try:
            return self._of(thing, name)
        finally:
            self.open.pop()

    def _of(self, thing: Any, name: str) -> Any:
        if isinstance(thing, enum.Enum):
            return f"{self._named(type(thing))}.{thing.name}"
        if isinstance(thing, bool | int | float | str):
            return thing
        if isinstance(thing, list | tuple):
            return [self.of(part, f"{name}[{number}]") for number, part in enumerate(thing)]
        if isinstance(thing, Mapping):
            items = sorted(thing.items(), key=lambda item: str(item[0]))
            return [[str(key), self.of(value, f"{name}.{key}" if name else str(key))] for key, value in items]
        if isinstance(thing, set | frozenset):
            return ["set", *sorted((self.of(part, name) for part in thing), key=repr)]
        if isinstance(thing, bytes | bytearray):
            return ["bytes", thing.hex()]
        if isinstance(thing, np.ndarray | np.generic | Tensor):
            return self._array(thing, name)
        if isinstance(thing, _NO_SETTINGS):
            return self._named(type(thing))
        if isinstance(thing, type):
            return self._named(thing)
        if isinstance(thing, types.ModuleType):
            return ["module", thing.__name__]
        if isinstance(thing, types.CodeType):
            return self._code(thing, name)
        if isinstance(thing, PurePath):
            return ["path", str(thing)]
        if callable(thing) and (found := self._callable(thing, name)) is not None:
            return found
        return self._object(thing, name)

    def _named(self, thing: Any) -> str:
        own = getattr(thing, "__qualname__", None) or thing.__name__
        return f"{getattr(thing, '__module__', '') or ''}.{own}" if self.modules else own

    def _array(self, thing: np.ndarray | np.generic | Tensor, name: str) -> list[Any]:
        if isinstance(thing, np.generic) or (isinstance(thing, np.ndarray) and thing.dtype.hasobject):
            return [str(thing.dtype), self.of(thing.tolist(), name)]
        affine = [self.of(thing.affine.as_subclass(Tensor), name)] if isinstance(thing, MetaTensor) else []
        if isinstance(thing, Tensor):
            values = thing.detach().as_subclass(Tensor).cpu()
            values = values if values.layout == torch.strided else values.to_dense()
            data = values.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            data = np.ascontiguousarray(thing)
        return [str(thing.dtype), list(thing.shape), hashlib.sha256(data.tobytes()).hexdigest(), *affine]

    def _callable(self, thing: Any, name: str) -> Any:
        """Describe a function in its many forms; ``None`` for an object that can be called."""
        if isinstance(thing, functools.partial):
            parts = {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
            return ["partial", self.of({**vars(thing), **parts}, name)]
        if isinstance(thing, types.MethodType):
            return ["method", self.of(thing.__self__, name), self.of(thing.__func__, name)]
        if isinstance(thing, types.FunctionType):
            return self._function(thing, name)
        if isinstance(thing, _BUILT_IN):
            owner = getattr(thing, "__self__", None)
            if owner is None or isinstance(owner, type | types.ModuleType):
                return self._named(thing)
            return ["method", self.of(owner, name), thing.__name__]
        if _is_global(thing):  # such as numpy's functions, or what lru_cache makes of one
            wrapped = getattr(thing, "__wrapped__", None)
            followed = isinstance(wrapped, types.FunctionType) and _is_users(wrapped)
            return [self._named(thing), self.of(wrapped, name)] if followed else self._named(thing)
        return None

    def _function(self, function: types.FunctionType, name: str) -> list[Any]:
        for number, other in enumerate(self.described):
            if other is function:
                return ["described as number", number]
        self.described.append(function)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        return [
            self._named(function),
            self._code(function.__code__, name),
            self.of(function.__defaults__, f"{name}.__defaults__"),
            self.of(function.__kwdefaults__, f"{name}.__kwdefaults__"),
            [[free, self._cell(cell, f"{name}.{free}")] for free, cell in cells],
            self._globals(function, name) if _is_users(function) else [],
        ]

    def _cell(self, cell: types.CellType, name: str) -> Any:
        try:
            value = cell.cell_contents
        except ValueError:
            return ["empty"]
        return self._reached(value, name)

    def _code(self, code: types.CodeType, name: str) -> list[Any]:
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return [
            code.co_code.hex(),
            getattr(code, "co_exceptiontable", b"").hex(),
            [code.co_flags, code.co_posonlyargcount, *arguments],
            list(code.co_names),
            self.of(code.co_consts, name),
        ]

    def _globals(self, function: types.FunctionType, name: str) -> list[Any]:
        """Describe the globals that a function names, ``package.module.VALUE`` and the values of ``@`` among them."""
        found: dict[str, Any] = {}
        for key, chain in _global_names(function.__code__):
            if key not in function.__globals__:
                continue  # of Python itself, or not there yet
            value, path = function.__globals__[key], key
            if key == _REFERENCES:
                if not chain or not isinstance(chain[0], _Constant):
                    self._refuse(function, name, "an expression with @ that is not the name of a value")
                path = f"@{chain[0].value}"
                value = value[chain[0].value]
            else:
                for attribute in chain:
                    if isinstance(attribute, _Constant) or not _is_users_place(value):
                        break
                    value, path = getattr(value, attribute, None), f"{path}.{attribute}"
            if not isinstance(value, types.ModuleType | type(os.environ)):
                found[path] = self._global(value, f"{name}:{path}")
        return [[path, found[path]] for path in sorted(found)]

    def _global(self, value: Any, name: str) -> Any:
        try:
            return self._reached(value, name)
        except ValueError:
            raise
        except Exception:  # MONAI's placeholder of a package that is not installed raises whatever it is asked
            return self._named(type(value))

    def _reached(self, value: Any, name: str) -> Any:
        """Describe what a function names; functions of packages by name, for their code is not the user's."""
        if isinstance(value, types.FunctionType) and not _is_users(value):
            if "<locals>" not in value.__qualname__:
                return self._named(value)
        return self.of(value, name)

    def _object(self, thing: Any, name: str) -> list[Any]:
        kind = self._named(type(thing))
        state = _slots(thing) | vars(thing) if hasattr(thing, "__dict__") else _slots(thing)
        if not state and not hasattr(thing, "__dict__"):
            return [kind, self._reduced(thing, name)]
        settings = {
            key: value
            for key, value in state.items()
            if key not in RUN_TIME_STATE and not isinstance(value, threading.local)
        }
        inner = [[key, self.of(settings[key], f"{type(thing).__name__}.{key}")] for key in sorted(settings, key=str)]
        return [kind, inner, *self._methods(type(thing))]

    def _methods(self, kind: type) -> list[Any]:
        """Describe the code of the user's own classes that a class is made of."""
        found = []
        for each in kind.__mro__:
            if _is_users_place(each):
                parts = [(key, getattr(part, "fget", None) or getattr(part, "__func__", part))
                         for key, part in sorted(vars(each).items())]  # fmt: skip
                functions = [[key, part] for key, part in parts if isinstance(part, types.FunctionType)]
                found.append([self._named(each), self.of(functions, kind.__name__)])
        return found

    def _reduced(self, thing: Any, name: str) -> Any:
        """Describe an object of compiled code as it would be pickled."""
        try:
            known = copyreg.dispatch_table.get(type(thing))
            reduced = known(thing) if known else thing.__reduce_ex__(4)
        except Exception:  # whatever such an object raises, it has no description
            reduced = None
        if isinstance(reduced, str):
            return reduced
        if not isinstance(reduced, tuple):
            self._refuse(thing, name)
        parts = [list(part) if isinstance(part, Iterator) else part for part in reduced]
        return self.of(parts, name)

    def _refuse(self, thing: Any, name: str, found: str | None = None) -> NoReturn:
        found = found or f"{type(thing).__module__}.{type(thing).__qualname__}"
        raise ValueError(
            f"{name or 'preprocessing'}: expected a plain value, an array, a named function or class, or an object made"
            f" of these, found {found}: another process could not tell it from others, nor prepared scans from those of"
            " other settings. Make it where it is used, of settings that are plain; only scans that stay in memory"
            " (cache_gib) can do without."
        )


class _Constant:
    """A constant by which something is indexed."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _global_names(code: types.CodeType) -> Iterator[tuple[str, list[Any]]]:
    """Give the globals that code names, nested code too, each with the attributes, or the index, that follow."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("EXTENDED_ARG", "PUSH_NULL", "CACHE")]
    for number, step in enumerate(steps):
        if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
            continue
        chain: list[Any] = []
        for following in steps[number + 1 :]:
            if following.opname == "LOAD_CONST" and not chain and isinstance(following.argval, str):
                chain.append(_Constant(following.argval))
            elif following.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                chain.append(following.argval)
            else:
                break
        yield step.argval, chain
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _is_users(function: types.FunctionType) -> bool:
    """Say whether a function is neither of an installed package, nor Python's, nor of this one."""
    module = function.__globals__.get("__name__")
    # an expression of a config has no module
    return module is None or _is_users_file(str(module), function.__code__.co_filename)


def _is_users_place(thing: Any) -> bool:
    """Say whether a thing is a module or a class of the user's own."""
    if isinstance(thing, type):
        module = sys.modules.get(thing.__module__)
        return _is_users_file(thing.__module__, getattr(module, "__file__", None) or "")
    return isinstance(thing, types.ModuleType) and _is_users_file(
        thing.__name__, getattr(thing, "__file__", None) or ""
    )


def _is_users_file(module: str, file: str) -> bool:
    if f"{module}.".startswith(_OWN) or module.split(".")[0] in _PACKAGES:
        return False
    return not {"site-packages", "dist-packages"} & set(PurePath(file).parts)


def _is_global(thing: Any) -> bool:
    """Say whether a thing is what its module has under its name."""
    found: Any = sys.modules.get(getattr(thing, "__module__", None) or "")
    for part in str(getattr(thing, "__qualname__", "") or getattr(thing, "__name__", "")).split("."):
        found = getattr(found, part, None)
    return found is not None and found is thing


def _slots(thing: Any) -> dict[str, Any]:
    """Give the attributes of an object that are not in its dictionary."""
    slots = [kind.__dict__.get("__slots__", ()) for kind in type(thing).__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    return {name: getattr(thing, name) for name in names if name[:2] != "__" and hasattr(thing, name)}
