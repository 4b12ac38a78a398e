"""One run of a command: what happens in it becomes an exit code, and a message for people.

Exit codes: 0 everything asked for was done; 1 a bug; 2 bad input or configuration, nothing started; 3 finished,
but some slides or jobs failed (they are listed); 4 stopped by a signal, run the same line again to go on.
"""

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from mil.unfailing import unfailing_stderr

if TYPE_CHECKING:
    from omegaconf import DictConfig

BUG, BAD_INPUT, PARTLY_FAILED, STOPPED = 1, 2, 3, 4
ELSEWHERE = 5
"""No exit code of a command: what a cell says that another process works on. A sweep leaves it or waits for it."""


def worst(codes: Sequence[int]) -> int:
    """One code for a sweep: a signal and a bug outrank; some failed and some done is 3."""
    failing = [code for code in codes if code]
    if not failing:
        return 0
    for code in (STOPPED, BUG):
        if code in failing:
            return code
    return failing[0] if len(failing) == len(codes) else PARTLY_FAILED


def guarded(run: "Callable[[DictConfig], int]", config: "DictConfig") -> int:
    """Run a command; a message for people instead of a stack where the fault is in the input."""
    with unfailing_stderr():
        return _with_code(run, config)


def _with_code(run: "Callable[[DictConfig], int]", config: "DictConfig") -> int:
    from omegaconf.errors import OmegaConfBaseException

    from feature_extraction.errors import ElsewhereError, PromptmilError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what we report in our own words
    try:
        _require_keys(config)
        return run(config)
    except ElsewhereError as error:
        complain(str(error))
        return ELSEWHERE
    except (PromptmilError, OmegaConfBaseException) as error:
        complain(f"error: {error}")
        return BAD_INPUT
    except OSError as error:
        complain(f"error: {error.filename or ''}: {error.strerror or error}; check the space and the rights of out=…")
        return PARTLY_FAILED
    except (KeyboardInterrupt, SystemExit):  # SystemExit is what Lightning makes of both signals
        signal.signal(signal.SIGINT, signal.default_int_handler)
        complain("stopped; run the same command again to go on")
        return STOPPED
    except Exception:
        logging.getLogger(__name__).exception("a bug in promptmil")
        return BUG


def _require_keys(config: "DictConfig") -> None:
    """Name every mandatory key that is missing, at once."""
    from omegaconf import OmegaConf

    from feature_extraction.errors import InputError

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise InputError(f"needs {', '.join(f'{key}=…' for key in missing)}; see --help")


def complain(text: str) -> None:
    """Say what is wrong, where that can be said."""
    with suppress(OSError):  # as in unfailing_stderr
        sys.stderr.write(text + "\n")
