"""What can go wrong while slides become embeddings.

PromptmilError
├── InputError        the command cannot start as asked: bad configuration, table or folder (exit code 2)
│   ├── MismatchError   two files that do not belong together: another encoder, another space
│   └── ElsewhereError  another process works on it now; in a sweep no error, the others go on
├── DamagedFileError  a file under its final name is not whole, or not the one expected
└── SlideError        one slide cannot be done; the others go on (exit code 3)
"""

from dataclasses import dataclass


class PromptmilError(Exception):
    """Any error whose message is written for the person at the keyboard."""


class InputError(PromptmilError):
    """The command cannot start as asked; nothing was written."""


class MismatchError(InputError):
    """Two inputs do not belong together, such as a text bank and features of another encoder."""


class ElsewhereError(InputError):
    """Another process works on what was asked for."""


class DamagedFileError(PromptmilError):
    """A file is cut, altered, or not the file its name promises."""


@dataclass(eq=False)
class SlideError(PromptmilError):
    """One slide cannot be done. The only error that costs a slide and not the run.

    Attributes:
        slide_id: The slide.
        stage: Where it happened: table, open, mpp, tissue, plan, tile, embed, write.
        cause: What was found and what was expected, in one sentence.
        remedy: What the user can do, in one sentence.
        code: Stable name of the fault, such as ``E-mpp``.
    """

    slide_id: str
    stage: str
    cause: str
    remedy: str
    code: str

    def __reduce__(self) -> tuple[type["SlideError"], tuple[str, ...]]:
        """How it passes from one process to another: an exception's own way knows no fields."""
        return type(self), (self.slide_id, self.stage, self.cause, self.remedy, self.code)

    def __str__(self) -> str:
        """The one line that goes to the log, ``status.csv`` and ``failures.csv``."""
        return f"slide={self.slide_id} stage={self.stage} cause={self.cause} remedy={self.remedy} code={self.code}"
