"""What opens the page; apart from the server, so that a driver loads none."""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass, field

new_word = functools.partial(secrets.token_urlsafe, 24)


@dataclass
class Keys:
    """What opens the page.

    Attributes:
        token: in the page's address.
        once: opens it one time: a browser is started with it, whose arguments other users of the machine may see.
    """

    token: str = field(default_factory=new_word)
    once: str = field(default_factory=new_word)
