"""Refuse a build in which a public name is missing, or stands on the API page without a docstring.

Public are the names in ``__all__`` of `pipeline` and `pipeline.heads`, the functions of the stages and of the analyses,
the kinds of errors, and the methods and properties of every class among them.
"""

from __future__ import annotations

import importlib
import inspect
import types
from typing import TYPE_CHECKING, Any

from sphinx.util import logging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

PACKAGES = ("pipeline", "pipeline.heads")
NAMES = (
    "pipeline.stages.extract.extract",
    "pipeline.stages.fit_head.fit_head",
    "pipeline.stages.fit_head.fit_heads",
    "pipeline.fitting.compare.compare_runs",
    "pipeline.stages.predict.predict",
    "pipeline.stages.finetune.finetune",
    "pipeline.analysis.search.search",
    "pipeline.analysis.duplicates.find_duplicates",
    "pipeline.analysis.labels.check_labels",
    "pipeline.analysis.projection.map_cache",
    "pipeline.analysis.active_learning.select",
    "pipeline.analysis.compare_caches.compare_caches",
)

log = logging.getLogger(__name__)


def report_missing(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name without an entry; `make docs` turns warnings into errors."""
    documented: dict[str, Any] = dict(env.domains.python_domain.objects)
    shown = {id(_object(name)) for name in documented if _object(name) is not None}
    for name in public_names():
        member = _object(name)
        if not inspect.getdoc(member):
            log.warning("%s is public and has no docstring", name)
        elif name not in documented and id(member) not in shown:
            log.warning("%s is public and not on the API page: add it to docs/api.rst", name)


def public_names() -> Iterator[str]:
    """Yield the dotted name of everything that the API page has to show."""
    errors = importlib.import_module("pipeline.errors")
    kinds = [name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)]
    exported = [f"{package}.{name}" for package in PACKAGES for name in importlib.import_module(package).__all__]
    for name in [*exported, *NAMES, *(f"pipeline.errors.{kind}" for kind in kinds)]:
        yield name
        if inspect.isclass(_object(name)):
            yield from (f"{name}.{member}" for member in _own_members(_object(name)))


def is_foreign(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out of the page what a class inherits from a library; None keeps Sphinx's own choice."""
    return None if _is_ours(member) else True


def _own_members(kind: type) -> Iterator[str]:
    """Yield the public methods and properties that the project defines, those of a parent class included."""
    for parent in kind.__mro__:
        for name, member in vars(parent).items():
            if not name.startswith("_") and _is_ours(member):
                yield name


def _is_ours(member: Any) -> bool:
    """Return whether a function, method or property is defined in the package."""
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return isinstance(function, types.FunctionType) and function.__module__.partition(".")[0] == "pipeline"


def _object(name: str) -> Any:
    """Return the object of a dotted name, or None."""
    module, _, rest = name, "", ""
    while module:
        try:
            found: Any = importlib.import_module(module)
            break
        except ImportError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
    else:
        return None
    for part in filter(None, rest.split(".")):
        found = inspect.getattr_static(found, part, None) if inspect.isclass(found) else getattr(found, part, None)
    return found
