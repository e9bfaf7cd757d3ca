"""Sends a folder to the Hugging Face Hub. As much as possible is checked before anything is sent.

The token is the one that huggingface_hub finds: HF_TOKEN, or that of `hf auth login`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, get_session, get_token

from sweeps.errors import Problem, SpecError
from trainables.errors import first_line
from trainables.hub import hub_answers

OPTION = "--push"
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
RepoType = Literal["model", "dataset"]


@dataclass(frozen=True)
class Push:
    """Sends a folder to a repository of the Hub.

    Attributes:
        repo: the repository, ORG/NAME.
        kind: the kind of repository.
        licence: the Hub's identifier of the licence, such as 'apache-2.0'.
        public: whether everybody may see it.
        overwrite: whether it may exist already. Its files are then replaced.
    """

    repo: str
    kind: RepoType
    licence: str | None
    public: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Check that the Hub will accept the folder. Sends nothing but questions about the token and the repository.

        Raises:
            SpecError: there is no licence or no token, the name has another form, the Hub does not answer, the token
                may not write, or the repository exists.
        """
        problems = [*self._malformed()]
        if get_token() is None:
            rule = "needs a token of the Hub: run `hf auth login`, or set HF_TOKEN"
            problems.append(Problem(OPTION, self.repo, rule))
        if not hub_answers():
            why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "nothing answers there"
            problems.append(Problem(OPTION, self.repo, f"{constants.ENDPOINT} is out of reach ({why})"))
        if problems:
            raise SpecError(problems)
        with self._answering("the Hub refuses the token"):
            account = HfApi().whoami()
        if problems := [*self._not_allowed(account)]:
            raise SpecError(problems)
        with self._answering("the Hub does not say whether the repository exists"):
            exists = HfApi().repo_exists(self.repo, repo_type=self.kind)
        if exists and not self.overwrite:
            rule = f"exists already on the Hub as a {self.kind}; to replace its files, give --overwrite"
            raise SpecError([Problem(OPTION, self.repo, rule)])

    def _malformed(self) -> Iterator[Problem]:
        if not self.licence:
            rule = "is needed for the card; give the Hub's identifier of the licence that you publish under"
            yield Problem("--license", None, rule, "--license apache-2.0")
        if not _NAME.fullmatch(self.repo):
            rule = "is not the name of a repository: a user or organisation, a slash and a name are needed"
            yield Problem(OPTION, self.repo, rule, "ORG/NAME" if "/" in self.repo else f"ORG/{self.repo}")

    def _not_allowed(self, account: dict[str, Any]) -> Iterator[Problem]:
        owner = self.repo.partition("/")[0]
        writable = [account["name"], *(org["name"] for org in account.get("orgs") or ())]
        if owner not in writable:
            nearest = f"{account['name']}/{self.repo.partition('/')[2]}"
            yield Problem(OPTION, self.repo, f"the token may write to {', '.join(writable)}", nearest)
        if ((account.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            yield Problem(OPTION, self.repo, "the token may only read; make one that may write")

    def _check_card(self, card: str) -> None:
        """Let the Hub check the card's metadata before the repository is made."""
        with self._answering("the Hub does not check the card"):
            answer = get_session().post(
                f"{constants.ENDPOINT}/api/validate-yaml",
                json={"content": card, "repoType": self.kind},
                headers={"authorization": f"Bearer {get_token()}"},
            )
            errors = answer.json().get("errors") or () if answer.status_code == 400 else ()
            if not errors:
                answer.raise_for_status()
        if errors:
            messages = "; ".join(str(error.get("message")) for error in errors)
            raise SpecError([Problem("README.md", None, f"the Hub refuses the card: {messages}")])

    def send(self, folder: Path) -> str:
        """Make the repository, send the folder as one commit, and return the address.

        Raises:
            SpecError: the Hub refuses the card, or the connection or the Hub failed.
        """
        self._check_card((folder / "README.md").read_text(encoding="utf-8"))
        with self._answering("was not sent; once the cause is mended, the same command with --overwrite sends it"):
            url = HfApi().create_repo(self.repo, repo_type=self.kind, private=not self.public, exist_ok=self.overwrite)
            HfApi().upload_folder(
                repo_id=self.repo,
                folder_path=folder,
                repo_type=self.kind,
                commit_message="Sent by randlora-sweeps",
                delete_patterns="*" if self.overwrite else None,
            )
        return str(url)

    @contextlib.contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        """Turn every error of the Hub or of the connection into a SpecError that begins with `what`."""
        try:
            yield
        except Exception as error:  # huggingface_hub changes its HTTP client, and so the errors of connections
            raise SpecError([Problem(OPTION, self.repo, f"{what} ({first_line(error)})")]) from error
