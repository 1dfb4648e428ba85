"Annotations with shapes are checked by jaxtyping; all others by beartype alone: the same checks without binding every call's arguments."
import inspect
from typing import Any, ForwardRef, Literal, TypeVar, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype

jaxtyped = jaxtyping.jaxtyped
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int passes for a float, as it does for type checkers (PEP 484)
alone = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))


def is_plain(annotation: Any) -> bool:
    "Whether an annotation says nothing of shapes, and nothing that jaxtyping would have to look up first."
    if get_origin(annotation) is Literal: return True
    if isinstance(annotation, (list, tuple)): return all(map(is_plain, annotation))  # the arguments of a Callable
    if isinstance(annotation, (str, ForwardRef, TypeVar)) or type(annotation).__module__.startswith("jaxtyping"): return False
    return all(map(is_plain, get_args(annotation)))


def by_annotations(*args: Any, **kwargs: Any) -> Any:
    "`jaxtyped` as the import hook writes it above every function: with the typechecker and nothing else."
    if args or set(kwargs) != {"typechecker"}: return jaxtyped(*args, **kwargs)
    def decorate(what: Any) -> Any:
        plain = inspect.isfunction(what) and not inspect.isgeneratorfunction(what) and all(map(is_plain, what.__annotations__.values()))
        return alone(what) if plain else jaxtyped(what, **kwargs)
    return decorate


def install(package: str) -> None:
    "Check every annotation of a package that is imported from here on."
    jaxtyping.jaxtyped = by_annotations
    jaxtyping.install_import_hook(package, "typechecker.typechecker")
