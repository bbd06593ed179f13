"""A model's own chat template, rendered in a sandbox: it comes with the file and is not trusted."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from sim.errors import InputError


def render(source: str, messages: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> str:
    """The text of a conversation, up to where the assistant answers; messages have a `role` and a `content`.

    `names` are the special tokens a template may use, such as `bos_token`. Blocks, filters and functions are those of
    `apply_chat_template` in Hugging Face's transformers. Raises InputError where the template cannot be used.
    """
    jinja2 = _jinja2_package()
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = _json
    try:
        return str(
            sandbox.from_string(source).render(
                messages=list(map(dict, messages)),
                add_generation_prompt=True,
                raise_exception=_raise,
                strftime_now=lambda form: datetime.now().strftime(form),
                **names,
            )
        )
    except InputError:
        raise
    except Exception as error:  # a template is a program: anything may go wrong in it
        raise InputError(f"the model's chat template cannot be used: {type(error).__name__}: {error}") from None


def _raise(reason: str) -> NoReturn:
    raise InputError(f"the model's chat template refuses the message: {reason}")


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _jinja2_package() -> Any:
    try:
        import jinja2  # an extra: only chat templates need it
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise InputError("a chat template needs the package jinja2: pip install 'kernel-lab[model]'") from None
    return jinja2
