"""The keys that open the page. They are in a separate file, so that a driver need not load the server."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass, field

new_word = functools.partial(secrets.token_urlsafe, 24)


@dataclass
class Keys:
    """The keys that open the page.

    Attributes:
        token: the key in the page's address.
        once: a key that works one time. A browser is started with it, because other users may see a program's
            arguments.
    """

    token: str = field(default_factory=new_word)
    once: str = field(default_factory=new_word)
