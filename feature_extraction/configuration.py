"""Where the configuration that comes with the package lies."""

from pathlib import Path

from feature_extraction.errors import InputError

_PACKAGES = Path(__file__).parent.parent


def conf_folder() -> Path:
    """The ``conf`` folder: inside ``mil`` when installed from a wheel, beside it in a checkout."""
    packaged = _PACKAGES / "mil" / "conf"
    return packaged if packaged.is_dir() else _PACKAGES / "conf"


def prompt_set_path(name: str) -> Path:
    """A set's name in ``conf/prompts``, or the path of a YAML file.

    Raises:
        InputError: No set of that name; the message lists the known ones.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    found = {path.stem: path for path in sorted((conf_folder() / "prompts").glob("*.yaml"))}
    if name not in found:
        raise InputError(f"prompts={name}: no such set; known: {', '.join(found)}; or give the path of a .yaml file")
    return found[name]
