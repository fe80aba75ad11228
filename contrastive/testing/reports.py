"""What a battery of checks found, and the small things that all batteries need."""

import copy
import pickle
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import TypeCheckError
from torch import Tensor

__all__ = ["Report", "copies", "near", "refuses", "require", "run_checks"]

Check = Callable[[Any], None]


@dataclass(frozen=True)
class Report:
    """What a battery found.

    Arguments:
        subject: what was checked, as it prints.
        passed: the checks that hold, by name.
        failures: of those that do not, what was found.
        exempt: those that were left out.
    """

    subject: str
    passed: tuple[str, ...]
    failures: dict[str, str]
    exempt: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def raise_failures(self) -> None:
        """Raises what failed, the first three in full.

        Raises:
            AssertionError: if anything did.
        """
        if self.failures:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        total = len(self.passed) + len(self.failures)
        lines = [f"{self.subject}: {len(self.failures)} of {total} checks fail"]
        lines += [f"- {name}: {found}" for name, found in list(self.failures.items())[:3]]
        lines += [f"- and {', '.join(list(self.failures)[3:])}"] if len(self.failures) > 3 else []
        return "\n".join(lines)


def run_checks(subject: Any, checks: Sequence[Check], exempt: Collection[str]) -> Report:
    """Runs checks, each from the same seed and with warnings silent.

    Arguments:
        subject: is handed to each of them.
        checks: functions that raise an AssertionError where the subject fails; any other exception is a failure too.
        exempt: names of checks to be left out.

    Raises:
        ValueError: for an exempt name that is none, with those there are.
    """
    named = {check.__name__.removeprefix("_"): check for check in checks}
    if unknown := sorted({*exempt} - {*named}):
        raise ValueError(f"exempt names {', '.join(unknown)}, expected some of {', '.join(named)}")
    passed, failures = [], {}
    for name, check in named.items():
        if name in exempt:
            continue
        try:
            with torch.random.fork_rng(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.manual_seed(0)
                check(subject)
        except AssertionError as error:
            failures[name] = str(error) or "raises an AssertionError of its own"
        except Exception as error:  # whatever a subject does is a finding, not the end of the battery
            failures[name] = f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            passed.append(name)
    return Report(repr(subject)[:200], tuple(passed), failures, tuple(name for name in named if name in exempt))


def require(holds: object, message: str) -> None:
    """Raises an AssertionError, also where Python's own assertions are switched off."""
    if not holds:
        raise AssertionError(message)


@contextmanager
def refuses(what: str, *words: str) -> Iterator[None]:
    """Demands a ValueError whose message holds some words, or that jaxtyping refuses where it checks signatures.

    Arguments:
        what: that should be refused, for the message.
        words: of which each must be in the ValueError's message.
    """
    try:
        yield
    except ValueError as error:
        lacking = [word for word in words if word not in str(error)]
        require(not lacking, f"{what} is refused, but {' and '.join(lacking)} is not named: {str(error)[:200]!r}")
    except TypeCheckError:
        return
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}, expected ValueError") from error
    else:
        raise AssertionError(f"{what} is accepted, expected ValueError")


def near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Demands equality within a tolerance, relative to the larger of 1 and the largest value; NaN equals nothing."""
    require(found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    found, expected = found.detach().double(), expected.detach().double()
    same = (found == expected) | ((found - expected).abs() <= tolerance * expected.abs().clamp(min=1.0))
    if not bool(same.all()):
        place = tuple(int(i) for i in (~same).nonzero()[0])
        where = f" at {place}" if place else ""
        raise AssertionError(f"{what}: {float(found[place]):.9g}{where}, expected {float(expected[place]):.9g}")


def copies(subject: Any) -> Iterator[tuple[str, Any]]:
    """The subject after `pickle` and after `copy.deepcopy`.

    Raises:
        AssertionError: where it cannot be pickled or copied.
    """
    try:
        pickled = pickle.dumps(subject)
    except Exception as error:
        raise AssertionError(f"cannot be pickled: {' '.join(str(error).split())[:150]}") from error
    yield "pickled", pickle.loads(pickled)  # what was written a line above
    yield "copied", copy.deepcopy(subject)
