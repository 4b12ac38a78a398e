"""Turn a configuration's ``_target_`` into an object, within limits.

Configurations found in a run folder or a checkpoint are data from a stranger: a free ``_target_`` could load a pickle.
So a target must be a class of the expected kind, inside the packages named by the caller.
"""

import importlib
from collections.abc import Mapping
from typing import TypeVar

from feature_extraction.errors import InputError

T = TypeVar("T")


def resolve(target: str, *, kind: type[T], packages: tuple[str, ...]) -> type[T]:
    """Find the class that ``target`` names.

    Args:
        target: Dotted name, such as ``mil.assign.Mean``.
        kind: The class must be a subclass of this.
        packages: The top-level packages it may come from.

    Raises:
        InputError: Outside these packages, unknown, or of another kind.
    """
    module_name, _, class_name = target.rpartition(".")
    if module_name.partition(".")[0] not in packages:
        raise InputError(f"_target_: {target}: only classes of {', '.join(packages)} may be named here")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"_target_: {target}: no such class ({error})") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise InputError(f"_target_: {target}: expected a {kind.__name__}, got {found!r}")
    return found


def construct(config: Mapping[str, object], *, kind: type[T], packages: tuple[str, ...], **given: object) -> T:
    """Build the object a configuration describes: its keys, and what the caller gives, are the class's arguments.

    Raises:
        InputError: No or an illegal ``_target_``, or arguments that the class does not take.
    """
    if "_target_" not in config:
        raise InputError(f"expected a configuration with _target_ (a {kind.__name__}), got {dict(config)}")
    found = resolve(str(config["_target_"]), kind=kind, packages=packages)
    options = {key: value for key, value in config.items() if key != "_target_"}
    try:
        return found(**options, **given)
    except TypeError as error:
        raise InputError(
            f"_target_: {config['_target_']}: does not fit its options {sorted(options)}: {error}"
        ) from error
